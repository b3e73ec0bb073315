"""A run that dies and is resumed ends as one that was never interrupted."""

from __future__ import annotations

import contextlib
import json
import random
import re
import resource

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedProx,
)

from fedsens import FederationKey, FedSensConfig
from fedsens.errors import CheckpointError, ConfigurationError, PhaseError, StrategyError
from fedsens.flower import LocalGrid, SelectiveEncryption
from fedsens.keys import open_model
from fedsens.protocol import CheckpointFolder, ReportFile, read_reports
from tests.secret_scan import forms

from .federation import (
    Recorder,
    arrays_of,
    config_of,
    initial_arrays,
    is_request,
    key_of,
    largest_difference,
    make_app,
    rounding,
    shared_key,
    state_dir,
)

CLIENTS, ROUNDS = 3, 6
STRETCH = 1.4  # of a round of training; see test_laws


class Killed(BaseException):
    """Stands for the end of the ServerApp's process."""


def dies(server_round, kind="train"):
    """Ends the server as it sends a message of a round."""

    def kill(message):
        config = message.content.get("config", {}) if message.has_content() else {}
        if is_request(message, kind) and config.get("server-round") == server_round:
            raise Killed

    return kill


@pytest.fixture
def start(tmp_path):
    """Start a run in a new server process: a new strategy, a new run id, the same clients."""
    runs = iter(range(1, 100))

    def begin(
        *,
        folder="checkpoints",
        rounds=ROUNDS,
        tap=None,
        app=None,
        inner=None,
        initial=None,
        app_config=None,
        evaluate_fn=None,
        node_config=None,
        train_config=None,
        **options,
    ):
        if folder is not None:
            options["checkpoint_dir"] = tmp_path / folder
        grid = LocalGrid(
            app or make_app(), CLIENTS, run_id=next(runs), tap=tap, node_config=node_config
        )
        seen = []
        strategy = SelectiveEncryption(
            inner or FedAvg(fraction_train=0.7),
            config_of(**options),
            app_config=app_config,
            on_report=seen.append,
        )
        random.seed(0)
        strategy.grid, strategy.seen = grid, seen
        strategy.result = strategy.start(
            grid,
            initial or initial_arrays(),
            rounds,
            train_config=train_config,
            evaluate_fn=evaluate_fn,
        )
        return strategy

    return begin


@pytest.fixture
def interrupted(start):
    """Run until the server dies, then resume."""

    def run(at, kind="train", **options):
        with pytest.raises(Killed):
            start(tap=dies(at, kind), **options)
        return start(resume=True, **options)

    return run


def opened(strategy):
    key = None
    if strategy.model.aggregate is not None:
        key = shared_key(strategy.grid, strategy._run.keys.fingerprint)
    return open_model(strategy.model, key, 1)


def metrics_of(result):
    """The metrics of every round."""
    return [
        {number: dict(record) for number, record in records.items()}
        for records in (
            result.train_metrics_clientapp,
            result.evaluate_metrics_clientapp,
            result.evaluate_metrics_serverapp,
        )
    ]


@pytest.mark.parametrize(
    ("at", "kind"), [(2, "train"), (2, "evaluate"), (4, "train"), (ROUNDS, "evaluate")]
)
def test_at_ratio_0_it_is_the_same_bit_for_bit(start, interrupted, at, kind):
    expected = start(ratio=0, folder=None)
    resumed = interrupted(at, kind, ratio=0)
    assert resumed.result.arrays.object_id == expected.result.arrays.object_id
    assert metrics_of(resumed.result) == metrics_of(expected.result)


@pytest.mark.parametrize(
    "options",
    [{"ratio": 0.1}, {"ratio": 1.0}, {"ratio": 0.3, "refresh_every": 2}, {"policy": "random"}],
    ids=["0.1", "1", "refresh", "random"],
)
def test_encrypted_it_is_the_same_within_the_codecs_error(start, interrupted, options):
    expected = start(folder=None, **options)
    bound = expected.config.parameters.error_bound(CLIENTS) + rounding(opened(expected))
    grown = 2 * bound * sum(STRETCH**i for i in range(ROUNDS))
    for kind in ("train", "evaluate"):
        resumed = interrupted(4, kind, folder=kind, **options)
        assert resumed.model.round == ROUNDS
        assert resumed.model.mask == expected.model.mask
        assert largest_difference(opened(resumed), opened(expected)) <= grown
        results = metrics_of(resumed.result), metrics_of(expected.result)
        for ours, theirs in zip(*results, strict=True):
            assert ours.keys() == theirs.keys()
            for number, record in theirs.items():
                assert ours[number] == pytest.approx(record, abs=1e-3)


def test_the_clients_train_on_from_the_model_that_was_saved(interrupted):
    recorder = Recorder()
    resumed = interrupted(4, app=make_app(recorder), ratio=0.5, inner=FedAvg())
    bound = resumed.config.parameters.error_bound(CLIENTS)
    for number in range(1, ROUNDS):
        mean = recorder.mean(number)
        for received in recorder.received[number + 1]:
            assert largest_difference(received, mean) <= bound + rounding(mean)


def test_it_may_die_again_and_again(start):
    expected = start(ratio=0, folder=None)
    resume = False
    for at in range(1, ROUNDS + 1):
        with pytest.raises(Killed):
            start(tap=dies(at, "evaluate"), ratio=0, resume=resume)
        resume = True
    resumed = start(ratio=0, resume=True)
    assert resumed.result.arrays.object_id == expected.result.arrays.object_id


def test_before_the_first_complete_round_there_is_nothing_to_resume(start):
    with pytest.raises(Killed):
        start(tap=dies(1), ratio=0.5)
    with pytest.raises(CheckpointError, match="got none"):
        start(resume=True, ratio=0.5)
    assert start(ratio=0.5).model.round == ROUNDS  # nothing stands in the way of a new start


def test_a_new_run_does_not_write_over_a_saved_one(start):
    with pytest.raises(Killed):
        start(tap=dies(3), ratio=0.5)
    with pytest.raises(CheckpointError, match=r"set fedsens\.resume"):
        start(ratio=0.5)
    assert start(resume=True, ratio=0.5).model.round == ROUNDS


def test_a_finished_run_can_be_extended(start):
    expected = start(ratio=0, folder=None)
    start(ratio=0, rounds=4)
    assert start(ratio=0, resume=True).result.arrays.object_id == expected.result.arrays.object_id


def test_a_finished_run_resumes_to_its_own_end(start):
    first = start(ratio=0.5)
    again = start(ratio=0.5, resume=True)
    assert again.model.aggregate == first.model.aggregate
    assert metrics_of(again.result)[0] == metrics_of(first.result)[0]
    fewer = start(ratio=0.5, resume=True, rounds=2)
    assert fewer.model.aggregate == first.model.aggregate


def test_reports_go_on_where_they_ended(interrupted):
    resumed = interrupted(4, ratio=0.5)
    assert resumed.seen == resumed.reports
    trained = [r.round for r in resumed.reports if r.phase == "train"]
    evaluated = [r.round for r in resumed.reports if r.phase == "evaluate"]
    assert trained == evaluated == list(range(1, ROUNDS + 1))
    assert [r.round for r in resumed.reports if r.phase == "keys"] == [1, 3]


def test_the_servers_own_evaluation_goes_on(start, interrupted):
    def size(server_round, arrays):
        return MetricRecord({
            "round": server_round,
            "size": float(abs(arrays_of(arrays)["0.weight"]).sum()),
        })

    expected = start(ratio=0, folder=None, evaluate_fn=size)
    resumed = interrupted(4, ratio=0, evaluate_fn=size)
    assert sorted(metrics_of(resumed.result)[2]) == list(range(ROUNDS + 1))
    assert metrics_of(resumed.result) == metrics_of(expected.result)


def test_a_server_side_optimiser_keeps_its_moments(start, interrupted):
    expected = start(ratio=0, folder=None, inner=FedAdam())
    with pytest.raises(Killed):
        start(tap=dies(4), ratio=0, inner=FedAdam())
    resumed = start(ratio=0, inner=FedAdam(), resume=True)
    assert resumed.result.arrays.object_id == expected.result.arrays.object_id


class Counting(FedAvg):
    """Keeps one of every kind of value that a checkpoint can hold."""

    def __init__(self):
        super().__init__()
        self.rounds, self.sums, self.last, self.single = 0, [], None, np.zeros(1)
        self.names = []

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        self.rounds += 1
        self.names.append(f"round {server_round}")
        if arrays is not None:
            self.last = arrays
            self.sums.append(arrays["3.bias"].numpy())
            self.single = self.single + arrays["3.bias"].numpy().sum()
        return arrays, metrics


def test_a_strategys_own_attributes_are_kept(start):
    expected = start(ratio=0, folder=None, inner=Counting()).inner
    with pytest.raises(Killed):
        start(tap=dies(4), ratio=0, inner=Counting())
    resumed = start(ratio=0, inner=Counting(), resume=True).inner
    assert (resumed.rounds, resumed.names) == (ROUNDS, expected.names)
    assert resumed.last.object_id == expected.last.object_id
    assert np.array_equal(resumed.single, expected.single)
    assert [a.tolist() for a in resumed.sums] == [a.tolist() for a in expected.sums]


def test_a_strategy_whose_state_cannot_be_saved_is_refused_at_once(start):
    inner = DifferentialPrivacyServerSideFixedClipping(FedAvg(), 1.0, 1.0, 2)
    with pytest.raises(StrategyError, match=r"with 'strategy' of type FedAvg; clear"):
        start(ratio=0, inner=inner)


OTHER = {
    "ratio": ({"ratio": 0.4}, "fedsens.ratio was 0.5, is 0.4"),
    "preset": ({"preset": "compact"}, "fedsens.preset was 'precise', is 'compact'"),
    "policy": ({"policy": "random"}, "fedsens.policy was 'sensitivity', is 'random'"),
    "app": ({"app_config": {"seed": 2}}, "seed was 1, is 2"),
    "train config": ({"train_config": ConfigRecord({"mu": b"ab"})}, "train.mu was None, is '6162'"),
    "strategy": ({"inner": FedProx(0.7)}, "strategy was FedAvg, is FedProx"),
    "fraction": ({"inner": FedAvg(0.5)}, "fraction-train was 0.7, is 0.5"),
    "model": ({"initial": ArrayRecord({"w": Array(np.zeros(9))})}, "expected a checkpoint of this"),
}


def test_a_run_with_other_options_is_refused_by_name(start):
    same = {"ratio": 0.5, "app_config": {"seed": 1}}
    with pytest.raises(Killed):
        start(tap=dies(3), **same)
    for change, text in OTHER.values():
        with pytest.raises(CheckpointError, match=text):
            start(**{**same, **change}, resume=True)
    assert start(**same, resume=True).model.round == ROUNDS


def test_deadlines_and_thresholds_may_change(start):
    with pytest.raises(Killed):
        start(tap=dies(3), ratio=0.5)
    inner = FedAvg(fraction_train=0.7, min_train_nodes=1)
    resumed = start(ratio=0.5, resume=True, key_timeout=5, map_min_clients=1, inner=inner)
    assert resumed.model.round == ROUNDS


def test_resume_needs_a_folder():
    with pytest.raises(ConfigurationError, match="set checkpoint-dir"):
        FedSensConfig(resume=True)
    assert FedSensConfig.from_run_config({"fedsens.checkpoint-dir": ""}).checkpoint_dir is None


@contextlib.contextmanager
def no_room():
    """Files of one byte at most, which fails as a full disk does, with another number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a14_a_full_disk_does_not_end_the_run(start, tmp_path, caplog, monkeypatch):
    for part, name in ((CheckpointFolder, "save"), (ReportFile, "append")):
        monkeypatch.setattr(part, name, no_room()(getattr(part, name)))
    out = tmp_path / "out"
    monkeypatch.setenv("FEDSENS_OUTPUT_DIR", str(out))
    assert start(ratio=0.5).model.round == ROUNDS
    assert "round 6 is not saved, the run goes on" in caplog.text
    assert re.search("File too large.*; make room in", caplog.text)
    assert "a report is not written, the run goes on" in caplog.text
    assert read_reports(out / "reports.jsonl") == []


def test_the_last_checkpoint_damaged_costs_one_round(start, tmp_path, caplog):
    expected = start(ratio=0, folder=None)
    with pytest.raises(Killed):
        start(tap=dies(4), ratio=0)
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:-3])
    resumed = start(ratio=0, resume=True)
    assert f"passed over the checkpoint {newest.name}" in caplog.text
    assert resumed.result.arrays.object_id == expected.result.arrays.object_id


def test_no_key_is_in_a_checkpoint(start, tmp_path):
    strategy = start(ratio=0.5)
    key = shared_key(strategy.grid)
    for path in (tmp_path / "checkpoints").iterdir():
        content = path.read_bytes()
        assert not [form for form in forms(key._secret) if form in content]


def test_the_agreed_key_is_taken_over(start):
    with pytest.raises(Killed):
        start(tap=dies(3), ratio=0.5)
    keys = sorted(state_dir().glob("run-1/node-*/key"))
    resumed = start(ratio=0.5, resume=True)
    assert [key_of(resumed.grid, node) for node in resumed.grid.nodes] == [
        shared_key(resumed.grid)
    ] * CLIENTS
    assert keys[0].read_bytes() == (state_dir() / "run-2" / "node-1000" / "key").read_bytes()


def test_a_client_that_lost_the_key_is_given_it_by_another(start):
    with pytest.raises(Killed):
        start(tap=dies(3), ratio=0.5)
    for name in ("key", "key.parties"):
        for node in (1000, 1001):
            (state_dir() / "run-1" / f"node-{node}" / name).unlink()
    resumed = start(ratio=0.5, resume=True)
    assert resumed.model.round == ROUNDS
    assert key_of(resumed.grid, 1000) == key_of(resumed.grid, 1002)


def test_if_nobody_holds_the_key_any_more_the_run_ends_by_name(start):
    with pytest.raises(Killed):
        start(tap=dies(3), ratio=0.5)
    for path in state_dir().glob("run-1/node-*/key"):
        path.write_text("damaged")
    with pytest.raises(PhaseError, match=r"at least 2 clients with the key [0-9a-f]{32}, got 0"):
        start(ratio=0.5, resume=True)
    assert not list(state_dir().glob("run-2/node-*/key"))  # and no new key was made in its place


def test_provisioned_keys_resume_with_the_same_key_only(start, tmp_path):
    for name in ("one", "other"):
        FederationKey.generate().save(tmp_path / name)
    one, other = ({"fedsens-key-file": str(tmp_path / name)} for name in ("one", "other"))
    with pytest.raises(Killed):
        start(tap=dies(3), ratio=0.5, node_config=one)
    with pytest.raises(PhaseError, match=r"clients with the key [0-9a-f]{32}, got 0"):
        start(ratio=0.5, node_config=other, resume=True)
    assert start(ratio=0.5, node_config=one, resume=True).model.round == ROUNDS


def test_with_a_pinned_roster_only_a_key_of_the_roster_is_taken_over(start, tmp_path, caplog):
    with pytest.raises(Killed):
        start(tap=dies(3), ratio=0.5)
    parties = (state_dir() / "run-1" / "node-1000" / "key.parties").read_text().split()
    assert len(set(parties)) == CLIENTS - 1
    roster = tmp_path / "roster.json"
    roster.write_text(json.dumps(parties[:1]))
    with pytest.raises(PhaseError, match="got 0"):
        start(ratio=0.5, resume=True, node_config={"fedsens-roster-file": str(roster)})
    assert "RosterError: expected only public keys of the pinned roster" in caplog.text
