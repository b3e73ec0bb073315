"""A new key from a round on: the run goes on, and the old key is used no more."""

from __future__ import annotations

import json

import pytest
from fedsens.flower.client import Client
from fedsens.protocol.keyfile import PublicParameters, save_key
from flwr.app import RecordDict

from fedsens import CkksParameters, generate_key
from fedsens.errors import CheckpointError, ConfigurationError, KeyMismatchError, PhaseError
from fedsens.flower import LocalGrid

from .federation import (
    Recorder,
    Run,
    is_reply,
    is_request,
    largest_difference,
    make_app,
    rounding,
    state_dir,
)

PARAMETERS = CkksParameters.preset("compact")
ROUNDS = 5


def header_of(message):
    return json.loads(message.content["fedsens.header"]["json"])


@pytest.fixture(params=["agreed", "provisioned"])
def federate(request, tmp_path):
    """Run a federation of three clients whose keys are agreed, or lie in a folder of each."""
    keys = [generate_key(PARAMETERS) for _ in range(3)]
    for node in range(3):
        (tmp_path / f"keys-{node}").mkdir()
        for number, key in enumerate(keys):
            save_key(key, tmp_path / f"keys-{node}" / f"{number}.key")

    def run(app=None, tap=None, change=lambda grid: None, **options):
        grid = LocalGrid(app or make_app(), 3, tap=tap)
        if request.param == "provisioned":
            for node, context in enumerate(grid.nodes.values()):
                context.node_config["fedsens-key-file"] = str(tmp_path / f"keys-{node}")
        change(grid)
        return Rotated(grid=grid, rounds=ROUNDS, **{"ratio": 0.5, **options})

    run.kind = request.param
    return run


class Rotated(Run):
    """A run whose models are opened with the key of their own generation."""

    @property
    def key(self):
        keys = self.strategy._run.keys
        held = [Client(c).store.key_of(keys.generation) for c in self.grid.nodes.values()]
        return next(key for key in held if key and key.fingerprint == keys.fingerprint)

    def _seen(self, report):
        if not self.strategy.config.resume:  # its earlier reports come before its models
            super()._seen(report)


def as_another_run(grid):
    grid._run_id = 2
    for context in grid.nodes.values():
        context.run_id = 2


def fingerprints(rounds):
    """Notes the key of every train message and answer."""

    def note(message):
        if (is_request(message) or is_reply(message)) and message.has_content():
            header = header_of(message)
            rounds.setdefault(header["round"], set()).add(header["fingerprint"])

    return note


def test_the_run_goes_on_under_the_new_key(federate):
    recorder, seen = Recorder(), {}
    run = federate(make_app(recorder), fingerprints(seen), rotate_at=(3, 5))
    assert [len(each) for each in seen.values()] == [1] * ROUNDS
    one, two, three, four, five = (seen[number].pop() for number in range(1, ROUNDS + 1))
    assert one == two
    assert three == four
    assert len({one, three, five}) == 3
    bound = 2 * run.strategy.config.parameters.error_bound(3) + rounding(run.models[1])
    for number in range(1, ROUNDS + 1):
        assert largest_difference(run.models[number], recorder.mean(number)) <= bound
        for received in recorder.received.get(number + 1, []):
            assert largest_difference(received, run.models[number]) <= bound
    assert [report.round for report in run.reports("rotate")] == [3, 5]
    assert all(report.bytes_up_encrypted > 0 for report in run.reports("rotate"))


def test_it_ends_as_a_run_without_rotation_within_the_codecs_error(federate, tmp_path):
    rotated = federate(rotate_at=(3,))
    plain = federate(change=as_another_run)
    bound = rotated.strategy.config.parameters.error_bound(3) + rounding(plain.models[1])
    assert largest_difference(rotated.models[ROUNDS], plain.models[ROUNDS]) <= 20 * bound


def test_a_new_mask_in_the_same_round_is_made_under_the_new_key(federate):
    recorder = Recorder()
    run = federate(make_app(recorder), rotate_at=(3,), refresh_every=2)
    assert [report.round for report in run.reports("mask")] == [1, 3, 5]
    bound = 2 * run.strategy.config.parameters.error_bound(3) + rounding(run.models[1])
    assert largest_difference(run.models[ROUNDS], recorder.mean(ROUNDS)) <= bound


def test_clients_refuse_the_old_key_after_the_rotation(federate):
    kept = {}

    def keep(message):
        if is_request(message) and message.metadata.dst_node_id == 1000:
            kept[header_of(message)["round"]] = RecordDict(dict(message.content))

    run = federate(tap=keep, rotate_at=(3,))
    old = kept[2]
    # The server pretends that the old model belongs to the newest round.
    header = {**json.loads(old["fedsens.header"]["json"]), "round": ROUNDS}
    old["fedsens.header"]["json"] = json.dumps(header)
    client = Client(run.grid.nodes[1000])
    with pytest.raises(Exception, match="expected key 2 of this run or a later one"):
        client.open(old)


def test_the_server_refuses_an_update_under_the_old_key(federate, caplog):
    first = {}

    def forge(message):
        if is_reply(message) and message.has_content():
            header = header_of(message)
            first.setdefault("fingerprint", header["fingerprint"])
            if header["round"] == 4 and message.metadata.src_node_id == 1002:
                header["fingerprint"] = first["fingerprint"]
                message.content["fedsens.header"]["json"] = json.dumps(header)

    run = federate(tap=forge, rotate_at=(3,))
    assert "left out the update of node 1002: expected an update under the key" in caplog.text
    assert [report.lost for report in run.reports("train")] == [0, 0, 0, 1, 0]


def test_a_rotation_goes_forward_only(federate, caplog):
    def turn(message):
        if is_request(message, "query.fedsens_rotate"):
            request = json.loads(message.content["fedsens.request"]["json"])
            message.content["fedsens.request"]["json"] = json.dumps({**request, "generation": 0})

    with pytest.raises(PhaseError, match="clients with both keys"):
        federate(tap=turn, rotate_at=(3,))
    assert "a rotation goes forward only" in caplog.text


def test_another_holder_is_asked_if_the_first_fails(federate, caplog):
    def lose(message):
        if is_request(message, "query.fedsens_rotate") and message.metadata.dst_node_id == 1000:
            message.content.clear()

    recorder = Recorder()
    federate(make_app(recorder), tap=lose, rotate_at=(3,))
    assert "node 1000 did not move the model to the new key" in caplog.text
    assert sorted(recorder.trained[ROUNDS]) == [1000, 1001, 1002]


@pytest.mark.parametrize(
    "change", [lambda b: b[:-1], lambda b: b[:60] + bytes([b[60] ^ 1]) + b[61:]]
)
def test_a_damaged_answer_is_refused(federate, caplog, change):
    def damage(message):
        if is_reply(message, "query.fedsens_rotate") and message.metadata.src_node_id == 1000:
            record = message.content["fedsens.ciphertext"]
            record["000000"].data = change(record["000000"].data)

    run = federate(tap=damage, rotate_at=(3,))
    assert "node 1000 did not move the model to the new key" in caplog.text
    assert run.strategy.model.round == ROUNDS


def test_a_late_joiner_gets_the_new_key_only(federate):
    def join(message):
        known = len(grid[0].nodes)
        if is_request(message, "evaluate") and known == 3 and header_of(message)["round"] == 3:
            grid[0].connect(1003, {"partition-id": 3, "num-partitions": 4})

    grid = []
    recorder = Recorder()
    federate(make_app(recorder), tap=join, change=grid.append, rotate_at=(3,))
    if federate.kind == "agreed":
        assert 1003 in recorder.trained[4]
        names = {path.name for path in (state_dir() / "run-1" / "node-1003").iterdir()}
        assert "key-1" in names
        assert "key" not in names
    else:
        assert 1003 not in recorder.trained[4]  # nobody shares a provisioned key


def test_a_resumed_run_rotates_on(federate, tmp_path):
    class Killed(BaseException):
        pass

    def kill(message):
        if is_request(message) and header_of(message)["round"] == 4:
            raise Killed

    folder = tmp_path / "checkpoints"
    with pytest.raises(Killed):
        federate(tap=kill, rotate_at=(3, 5), checkpoint_dir=folder)
    for wrong in ((), (5,), (2, 3)):
        with pytest.raises(CheckpointError, match=r"fedsens\.rotate-at asks for"):
            federate(rotate_at=wrong, checkpoint_dir=folder, resume=True)
    seen = {}

    def other_run(grid):
        grid._run_id = 2
        for context in grid.nodes.values():
            context.run_id = 2

    run = federate(
        tap=fingerprints(seen),
        change=other_run,
        rotate_at=(3, 5),
        checkpoint_dir=folder,
        resume=True,
    )
    assert sorted(seen) == [4, 5]
    assert seen[4] != seen[5]
    assert run.strategy.model.round == ROUNDS


@pytest.fixture
def two_keys(tmp_path):
    keys = [generate_key(PARAMETERS) for _ in range(2)]
    for number, key in enumerate(keys):
        (tmp_path / "keys").mkdir(exist_ok=True)
        save_key(key, tmp_path / "keys" / f"{number}.key")
        PublicParameters.of(key).save(tmp_path / f"{number}.json")
    return keys, {"fedsens-key-file": str(tmp_path / "keys")}


def test_a_missing_next_key_stops_the_run_with_its_state_saved(two_keys, tmp_path):
    keys, node_config = two_keys
    options = {"ratio": 0.5, "rounds": 4, "checkpoint_dir": tmp_path / "checkpoints"}
    grid = LocalGrid(make_app(), 3, node_config=node_config)
    (tmp_path / "keys" / "1.key").rename(tmp_path / "later")
    with pytest.raises(PhaseError, match="give every client key 2, then resume the run"):
        Rotated(grid=grid, rotate_at=(3,), **options)
    (tmp_path / "later").rename(tmp_path / "keys" / "1.key")
    grid = LocalGrid(make_app(), 3, run_id=2, node_config=node_config)
    run = Rotated(grid=grid, rotate_at=(3,), resume=True, **options)
    assert run.strategy._run.keys.fingerprint == keys[1].fingerprint


def test_the_same_key_twice_is_no_rotation(two_keys, tmp_path):
    keys, node_config = two_keys
    (tmp_path / "keys" / "1.key").unlink()
    save_key(keys[0], tmp_path / "keys" / "1.key")
    grid = LocalGrid(make_app(), 3, node_config=node_config)
    with pytest.raises(PhaseError, match="clients with a new key"):
        Rotated(grid=grid, rotate_at=(2,), ratio=0.5, rounds=3)


def test_with_public_parameters_the_server_accepts_these_keys_only(two_keys, tmp_path):
    _, node_config = two_keys
    options = {"ratio": 0.5, "rounds": 3, "rotate_at": (2,)}
    right = f"{tmp_path}/0.json,{tmp_path}/1.json"
    grid = LocalGrid(make_app(), 3, node_config=node_config)
    assert Rotated(grid=grid, public_parameters=right, **options).strategy.model.round == 3
    for wrong in (f"{tmp_path}/1.json,{tmp_path}/0.json", f"{tmp_path}/0.json,{tmp_path}/0.json"):
        grid = LocalGrid(make_app(), 3, run_id=2, node_config=node_config)
        with pytest.raises(PhaseError):
            Rotated(grid=grid, public_parameters=wrong, **options)
    with pytest.raises(ConfigurationError, match=r"expected the key .* to cover"):
        Rotated(public_parameters=right, preset="precise", **options)


def test_a_provisioned_client_keeps_no_agreed_key(two_keys):
    _, node_config = two_keys
    store = Client(LocalGrid(make_app(), 1, node_config=node_config).nodes[1000]).store
    with pytest.raises(KeyMismatchError, match="provisioned"):
        store.keep(generate_key(PARAMETERS), generation=2)
