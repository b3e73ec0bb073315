"""``fedsens.opens = "server"``: the server opens the mean, and nobody's update."""

import json
import random

import numpy as np
import pytest
from flwr.app import ConfigRecord, MetricRecord
from flwr.serverapp.strategy import (
    Bulyan,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedXgbBagging,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
)

from fedsens import FedSensConfig
from fedsens.crypto import OneTimeSecret
from fedsens.errors import ConfigurationError, CryptoError, PhaseError, StrategyError
from fedsens.flower import LocalGrid, SelectiveEncryption
from fedsens.flower._client import Client
from fedsens.flower._records import HEADER, KEY_ANSWER, MASK

from .federation import (
    arrays_of,
    config_of,
    initial_arrays,
    is_request,
    make_app,
    run_plain,
    shared_key,
)
from .federation import largest_difference as difference_of_all

# The codec's bound for three clients is about 1e-7; adaptive steps divide by root(v) + tau.
STRATEGIES = {
    "FedAvg": (FedAvg, 1e-5),
    "FedProx": (lambda: FedProx(proximal_mu=0.1), 1e-5),
    "FedAvgM": (lambda: FedAvgM(server_learning_rate=0.5, server_momentum=0.9), 1e-5),
    "FedAdam": (lambda: FedAdam(eta=0.05, tau=0.1), 1e-4),
    "FedYogi": (lambda: FedYogi(eta=0.05, tau=0.1), 1e-4),
    "FedAdagrad": (lambda: FedAdagrad(eta=0.05, tau=0.1), 1e-4),
}


def largest_difference(one, other):
    """Over floating-point tensors: counters are whole numbers again after each round here."""
    names = [n for n, each in arrays_of(initial_arrays()).items() if each.dtype.kind == "f"]
    return difference_of_all(*({name: each[name] for name in names} for each in (one, other)))


class Halving(FedAvg):
    """A user's own: half a step towards the mean, and it keeps what it saw."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def configure_train(self, server_round, arrays, config, grid):
        self.before = {name: array.numpy() for name, array in arrays.items()}
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        for name, array in arrays.items():
            half = (self.before[name] + array.numpy()) / 2
            arrays[name] = type(array)(np.asarray(half, array.numpy().dtype))
        self.seen.append({name: array.numpy() for name, array in arrays.items()})
        return arrays, metrics


def run(inner=None, rounds=2, *, ratio=1.0, grid=None, evaluate_fn=None, tap=None, **options):
    grid = grid or LocalGrid(make_app(), 3, node_config={"fedsens-opens": "server"}, tap=tap)
    config = config_of(opens="server", ratio=ratio, **options)
    strategy = SelectiveEncryption(inner or FedAvg(), config)
    random.seed(0)
    result = strategy.start(grid, initial_arrays(), rounds, evaluate_fn=evaluate_fn)
    return strategy, result, grid


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_on_the_mean_is_what_it_is_without_fedsens(name):
    make, bound = STRATEGIES[name]
    _, result, _ = run(make(), 10)
    plain = run_plain(make(), 10)
    assert largest_difference(arrays_of(result.arrays), arrays_of(plain.arrays)) < bound
    accuracies = [
        [metrics["accuracy"] for metrics in each.evaluate_metrics_clientapp.values()]
        for each in (result, plain)
    ]
    assert accuracies[0] == accuracies[1]


@pytest.mark.parametrize("ratio", [0.3, 1.0])
def test_a_users_own_strategy_gets_whole_arrays(ratio):
    inner, twin = Halving(), Halving()
    _, result, _ = run(inner, 3, ratio=ratio)
    run_plain(twin, 3)
    assert len(inner.seen) == 3
    for one, other in zip(inner.seen, twin.seen, strict=True):
        assert largest_difference(one, other) < 1e-5
    assert largest_difference(arrays_of(result.arrays), inner.seen[-1]) == 0


def test_the_server_can_evaluate_the_model_each_round():
    seen = {}

    def evaluate(server_round, arrays):
        seen[server_round] = arrays_of(arrays)
        return MetricRecord({"round": server_round})

    strategy, result, _ = run(FedAdam(eta=0.05, tau=0.1), 3, evaluate_fn=evaluate)
    assert sorted(seen) == [0, 1, 2, 3]
    assert largest_difference(seen[3], arrays_of(result.arrays)) == 0
    assert all(np.isfinite(value).all() for value in seen[3].values())
    assert list(result.evaluate_metrics_serverapp) == [0, 1, 2, 3]
    assert not strategy.model.mask.k


def test_nobody_has_or_needs_a_key():
    _, _, grid = run()
    with pytest.raises(StopIteration):
        shared_key(grid)


def test_a_client_refuses_unless_its_owner_allows_it():
    grid = LocalGrid(make_app(), 3)
    with pytest.raises(Exception, match="fedsens-opens=server"):
        run(grid=grid)


def test_one_client_that_does_not_allow_it_is_left_out_of_the_round():
    grid = LocalGrid(make_app(), 3, node_config={"fedsens-opens": "server"})
    grid.nodes[1002].node_config["fedsens-opens"] = "clients"
    strategy, result, _ = run(grid=grid, policy="random", rounds=1)
    (report,) = [each for each in strategy.reports if each.phase == "train"]
    assert report.clients == 2
    assert result.arrays is not None
    plain = run_plain(rounds=1, clients=2)
    assert largest_difference(arrays_of(result.arrays), arrays_of(plain.arrays)) < 1e-5


class Turncoat(LocalGrid):
    """A server that asks for a plain model in the second round."""

    def __init__(self, opens):
        super().__init__(make_app(), 3, node_config={"fedsens-opens": "server"})
        self._opens, self.answers = opens, []

    def answer(self, message):
        header = json.loads(message.content[HEADER]["json"]) if is_request(message) else {}
        spoilt = header.get("round") == 2
        if spoilt:
            message.content.pop(MASK, None)
            lie = header | {"mask": header["model_mask"], "opens": self._opens}
            message.content[HEADER] = ConfigRecord({"json": json.dumps(lie)})
        reply = super().answer(message)
        if spoilt:
            self.answers.append(reply)
        return reply


@pytest.mark.parametrize("opens", ["server", "clients"])
def test_once_asked_for_encrypted_answers_a_client_gives_no_plain_ones(opens):
    grid = Turncoat(opens)
    with pytest.raises(PhaseError):
        run(grid=grid, rounds=2, policy="random", ratio=0.5, max_empty_rounds=1)
    assert len(grid.answers) == 3
    for reply in grid.answers:
        assert reply.has_error()
        assert reply.error.reason.startswith("DowngradeError: expected encryption, because this")


def test_a_client_that_allows_it_still_takes_part_where_clients_open():
    grid = LocalGrid(make_app(), 3, node_config={"fedsens-opens": "server"})
    strategy = SelectiveEncryption(FedAvg(), config_of(ratio=1.0))
    strategy.start(grid, initial_arrays(), 1)
    assert strategy.model.aggregate is not None
    assert shared_key(grid)


def summed(answers):
    """The secret that some key answers add up to."""
    each = [np.frombuffer(answer, "<u2") for answer in answers]
    total = np.sum(each, axis=0, dtype=np.uint16).view(np.int16).astype(np.int64)
    return OneTimeSecret.from_array(total, len(each))


def test_one_clients_answers_do_not_open_its_update():
    answers = []

    def tap(message):
        if message.has_content() and KEY_ANSWER in message.content:
            answers.append(b"".join(each.data for each in message.content[KEY_ANSWER].values()))

    run(rounds=1, tap=tap)
    assert len(answers) == 3
    for subset in ([0], [1], [2], [0, 1], [0, 2], [1, 2]):
        with pytest.raises(CryptoError):
            summed(answers[i] for i in subset)
    summed(answers)


@pytest.mark.parametrize("policy", ["sensitivity", "random", "magnitude"])
def test_masks_below_ratio_one(policy):
    strategy, result, _ = run(FedAdam(eta=0.05, tau=0.1), 3, ratio=0.3, policy=policy)
    plain = run_plain(FedAdam(eta=0.05, tau=0.1), 3)
    assert 0 < strategy._run.mask.k < strategy._run.mask.size
    assert largest_difference(arrays_of(result.arrays), arrays_of(plain.arrays)) < 1e-4


def test_the_mask_is_the_one_that_clients_would_make():
    here, _, _ = run(rounds=1, ratio=0.3)
    there = SelectiveEncryption(FedAvg(), config_of(ratio=0.3))
    there.start(LocalGrid(make_app(), 3, run_id=2), initial_arrays(), 1)
    assert here._run.mask.overlap(there._run.mask) == 1


@pytest.mark.parametrize(
    "strategy",
    [
        FedMedian(),
        FedTrimmedAvg(),
        Krum(),
        MultiKrum(),
        Bulyan(),
        FedXgbBagging(),
        QFedAvg(client_learning_rate=0.1),
        DifferentialPrivacyServerSideFixedClipping(FedAvg(), 1.0, 1.0, 3),
    ],
    ids=lambda strategy: type(strategy).__name__,
)
def test_a_strategy_that_needs_single_updates_is_refused(strategy):
    with pytest.raises(StrategyError, match="function of the mean"):
        SelectiveEncryption(strategy, FedSensConfig.create(opens="server"))


@pytest.mark.parametrize(
    "options",
    [{"rotate_at": 3}, {"fingerprints": "0" * 32}, {"remainder": "withheld"}, {"opens": "nobody"}],
)
def test_options_without_sense_are_refused(options):
    with pytest.raises(ConfigurationError, match="opens"):
        FedSensConfig.create(**({"opens": "server"} | options))


def test_a_wrong_key_answer_voids_the_round(monkeypatch, caplog):
    from fedsens.flower import _client_uploads

    real = _client_uploads.key_answer

    def wrong(*args):
        return bytes(each ^ 1 for each in real(*args))

    def sometimes(secret, identities, *rest):
        first = min(Client(context).store.name for context in grid.nodes.values())
        name = identities[0].public_key().public_bytes_raw().hex()
        return (wrong if name == first else real)(secret, identities, *rest)

    grid = LocalGrid(make_app(), 3, node_config={"fedsens-opens": "server"})
    monkeypatch.setattr(_client_uploads, "key_answer", sometimes)
    with pytest.raises(PhaseError, match="changed the model, got none of 1"):
        run(grid=grid, rounds=1)
    assert "round 1 changes nothing: expected a sum that honest clients could" in caplog.text


def test_a_resumed_run_goes_on_as_if_never_stopped(tmp_path):
    def make():
        return FedAdam(eta=0.05, tau=0.1)

    whole = run(make(), 3, checkpoint_dir=tmp_path / "whole")[1]
    options = {"checkpoint_dir": tmp_path / "parts", "ratio": 1.0}
    grid = LocalGrid(make_app(), 3, run_id=2, node_config={"fedsens-opens": "server"})
    run(make(), 2, grid=grid, **options)
    later = LocalGrid(make_app(), 3, run_id=3, node_config={"fedsens-opens": "server"})
    result = run(make(), 3, grid=later, resume=True, **options)[1]
    assert largest_difference(arrays_of(whole.arrays), arrays_of(result.arrays)) < 1e-4


def test_reports_tell_what_was_encrypted_although_the_model_is_whole():
    strategy, _, _ = run(rounds=2, policy="random", ratio=0.5)
    told = [each.encrypted_parameters for each in strategy.reports if each.phase == "train"]
    assert told == [57, 57]
    assert strategy.model.mask.k == 0
