"""A new key from a round on: the run goes on, and the old key is used no more."""

from __future__ import annotations

import copy
import json

import pytest
from flwr.app import RecordDict
from flwr.serverapp.strategy import FedAvg

from fedsens import FederationKey
from fedsens.errors import (
    CheckpointError,
    ConfigurationError,
    DowngradeError,
    KeyMismatchError,
    PhaseError,
)
from fedsens.flower import LocalGrid
from fedsens.flower._client import Client
from fedsens.flower._records import base_digest, take_header
from fedsens.protocol import KEY_BYTES, ModelHeader

from .federation import (
    Recorder,
    Run,
    is_reply,
    is_request,
    largest_difference,
    make_app,
    rounding,
    state_dir,
    train,
)

ROUNDS = 5


def header_of(message):
    return json.loads(message.content["fedsens.header"]["json"])


@pytest.fixture(params=["agreed", "provisioned"])
def federate(request, tmp_path):
    """Run a federation of three clients whose keys are agreed, or lie in a folder of each."""
    keys = [FederationKey.generate() for _ in range(3)]
    for node in range(3):
        (tmp_path / f"keys-{node}").mkdir()
        for number, key in enumerate(keys):
            key.save(tmp_path / f"keys-{node}" / f"{number}.key")

    def run(app=None, tap=None, change=lambda grid: None, **options):
        grid = LocalGrid(app or make_app(), 3, tap=tap)
        if request.param == "provisioned":
            for node, context in enumerate(grid.nodes.values()):
                context.node_config["fedsens-key-file"] = str(tmp_path / f"keys-{node}")
        change(grid)
        return Rotated(grid=grid, **{"rounds": ROUNDS, "ratio": 0.5, **options})

    run.kind = request.param
    return run


class Rotated(Run):
    """A run whose models are opened with the key of their own place."""

    @property
    def key(self):
        keys = self.strategy._run.keys
        held = [Client(c).store.key_of(keys.key_index) for c in self.grid.nodes.values()]
        return next(key for key in held if key and key.fingerprint == keys.fingerprint)

    def _seen(self, report):
        if not self.strategy.config.resume:  # its earlier reports come before its models
            super()._seen(report)


def as_another_run(grid):
    grid._run_id = 2
    for context in grid.nodes.values():
        context.run_id = 2


def fingerprints(rounds):
    """Notes the key of every train message."""

    def note(message):
        if is_request(message):
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
    bound = run.strategy.config.parameters.error_bound(3) + rounding(run.models[1])
    for number in range(1, ROUNDS + 1):
        assert largest_difference(run.models[number], recorder.mean(number)) <= bound
        for received in recorder.received.get(number + 1, []):
            assert largest_difference(received, run.models[number]) == 0
    assert [report.round for report in run.reports("rotate")] == [3, 5]
    for report in run.reports("rotate"):  # two holders, who agree
        assert report.bytes_up_encrypted == 2 * KEY_BYTES


def test_it_ends_as_a_run_without_rotation_within_the_codecs_error(federate, tmp_path):
    rotated = federate(rotate_at=(3,))
    plain = federate(change=as_another_run)
    bound = rotated.strategy.config.parameters.error_bound(3) + rounding(plain.models[1])
    assert largest_difference(rotated.models[ROUNDS], plain.models[ROUNDS]) <= 20 * bound


def test_the_ciphertext_stays_and_only_tags_and_pads_are_made_anew(federate):
    sent = {}

    def keep(message):
        if is_request(message) or is_request(message, "query.fedsens_rekey"):
            parts = [
                b"".join(array.data for array in message.content[name].values())
                for name in ("fedsens.ciphertext", "fedsens.key-sum")
                if name in message.content
            ]
            if parts:
                sent.setdefault((header_of(message)["round"], message.metadata.message_type), parts)

    federate(tap=keep, rotate_at=(3,))
    before, after = sent[3, "query.fedsens_rekey"], sent[3, "train"]
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_a_new_mask_in_the_same_round_is_made_under_the_new_key(federate):
    recorder = Recorder()
    run = federate(make_app(recorder), rotate_at=(3,), refresh_every=2)
    assert [report.round for report in run.reports("mask")] == [1, 3, 5]
    bound = run.strategy.config.parameters.error_bound(3) + rounding(run.models[1])
    assert largest_difference(run.models[ROUNDS], recorder.mean(ROUNDS)) <= bound


def test_clients_refuse_the_old_key_after_the_rotation(federate):
    kept = {}

    def keep(message):
        if is_request(message) and message.metadata.dst_node_id == 1000:
            kept[header_of(message)["round"]] = copy.deepcopy(message.content)

    run = federate(tap=keep, rotate_at=(3,))
    old = kept[2]
    # The server pretends that the old model belongs to the newest round.
    header = {**json.loads(old["fedsens.header"]["json"]), "round": ROUNDS}
    old["fedsens.header"]["json"] = json.dumps(header)
    client = Client(run.grid.nodes[1000])
    with pytest.raises(DowngradeError, match="expected key 2 of this run or a later one"):
        client.open(old)


def test_the_server_refuses_an_update_under_the_old_key(federate, caplog):
    """A client that did not rotate would bind its upload to the key that it holds."""
    asked, kept = {}, {}

    def forge(message):
        if is_request(message):
            header = header_of(message)
            asked[message.metadata.message_id] = header["round"]
            kept.setdefault("old", header["fingerprint"])
            if header["round"] == 4:
                content = RecordDict(dict(message.content))
                kept["bound"] = bound_to(content, kept["old"], message.metadata.run_id)
        elif is_reply(message) and asked[message.metadata.reply_to_message_id] == 4:
            header = header_of(message)
            if message.metadata.src_node_id == 1002:
                header["context"] = kept["bound"]
                message.content["fedsens.header"]["json"] = json.dumps(header)

    run = federate(tap=forge, rotate_at=(3,))
    assert "left out the update of node 1002: expected an upload that is bound to" in caplog.text
    assert [report.lost for report in run.reports("train")] == [0, 0, 0, 1, 0]


def bound_to(content, fingerprint, run_id):
    """D of what a client was told, but with another key."""
    base = base_digest(content)
    header = take_header(content, ModelHeader).model_copy(update={"fingerprint": fingerprint})
    return header.context("update", str(run_id), base).digest.hex()


def test_a_rotation_goes_forward_only(federate, caplog):
    def turn(message):
        if is_request(message, "query.fedsens_rekey"):
            request = json.loads(message.content["fedsens.request"]["json"])
            message.content["fedsens.request"]["json"] = json.dumps({**request, "key_index": 0})

    with pytest.raises(PhaseError, match="clients with both keys"):
        federate(tap=turn, rotate_at=(3,))
    assert "a rotation goes forward only" in caplog.text


def test_another_holder_is_asked_if_the_first_fails(federate, caplog):
    def lose(message):
        if is_request(message, "query.fedsens_rekey") and message.metadata.dst_node_id == 1000:
            message.content.clear()

    recorder = Recorder()
    federate(make_app(recorder), tap=lose, rotate_at=(3,))
    assert "node 1000 did not put the model under the new key" in caplog.text
    assert sorted(recorder.trained[ROUNDS]) == [1000, 1001, 1002]


def test_holders_that_failed_in_the_round_before_put_the_model_under_the_new_key(federate):
    def fail_once(message, context):
        if message.content["config"]["server-round"] == 2:
            raise ValueError
        return train(message, context)

    silent = FedAvg(fraction_evaluate=0.0)  # so that nothing is asked of them in between
    run = federate(make_app(fail_once), inner=silent, rotate_at=(3,))
    assert run.strategy.model.round == ROUNDS


def shorter(message):
    record = message.content["fedsens.key-sum"]
    record["000000"].data = record["000000"].data[:-1]


def flipped(message):
    record = message.content["fedsens.key-sum"]
    data = record["000000"].data
    record["000000"].data = data[:60] + bytes([data[60] ^ 1]) + data[61:]


def other_tags(message):
    header = header_of(message)
    tags = [header["tags"][0] ^ 1, *header["tags"][1:]]
    message.content["fedsens.header"]["json"] = json.dumps({**header, "tags": tags})


def without_tags(message):
    message.content["fedsens.header"]["json"] = json.dumps({**header_of(message), "tags": []})


@pytest.mark.parametrize("change", [shorter, flipped, other_tags, without_tags])
@pytest.mark.parametrize("node", [1000, 1001])
def test_a10a_one_wrong_answer_is_outvoted_by_two_that_agree(federate, caplog, change, node):
    def damage(message):
        if is_reply(message, "query.fedsens_rekey") and message.metadata.src_node_id == node:
            change(message)

    recorder = Recorder()
    run = federate(make_app(recorder), damage, rotate_at=(3,), rounds=3)
    assert f"node {node} " in caplog.text
    assert run.strategy.model.round == 3
    for received in recorder.received[3]:
        assert largest_difference(received, run.models[2]) == 0


def test_a10a_wrong_answers_that_differ_stop_no_run_where_two_others_agree(federate):
    """Three of them are as many as are tried where none comes."""
    wrong = {1000: flipped, 1001: other_tags, 1002: without_tags}

    def damage(message):
        if is_reply(message, "query.fedsens_rekey") and message.metadata.src_node_id in wrong:
            wrong[message.metadata.src_node_id](message)

    def five(grid):
        for number in (3, 4):
            grid.connect(1000 + number, {"partition-id": number, "num-partitions": 5})
            if federate.kind == "provisioned":
                folder = grid.nodes[1000].node_config["fedsens-key-file"]
                grid.nodes[1000 + number].node_config["fedsens-key-file"] = folder

    recorder = Recorder()
    run = federate(make_app(recorder), damage, change=five, rotate_at=(3,), rounds=3)
    assert run.strategy.model.round == 3
    assert len(recorder.received[3]) == 5
    for received in recorder.received[3]:
        assert largest_difference(received, run.models[2]) == 0


@pytest.mark.parametrize("change", [flipped, other_tags])
def test_a10a_two_nodes_of_one_identity_that_agree_are_one(federate, change):
    first = {}

    def damage(message):
        node = message.metadata.src_node_id
        if node not in {1000, 1001} or not message.has_content():
            return
        if is_reply(message, "query.fedsens_keys"):
            name = first.setdefault("name", header_of(message)["name"])
            told = json.dumps(header_of(message) | {"name": name})
            message.content["fedsens.header"]["json"] = told
        if is_reply(message, "query.fedsens_rekey"):
            change(message)

    def four(grid):
        grid.connect(1003, {"partition-id": 3, "num-partitions": 4})
        if federate.kind == "provisioned":
            folder = grid.nodes[1000].node_config["fedsens-key-file"]
            grid.nodes[1003].node_config["fedsens-key-file"] = folder

    recorder = Recorder()
    run = federate(make_app(recorder), damage, change=four, rotate_at=(3,), rounds=3)
    assert run.strategy.model.round == 3
    for received in recorder.received[3]:
        assert largest_difference(received, run.models[2]) == 0


@pytest.mark.parametrize("change", [shorter, flipped, other_tags])
def test_if_no_two_agree_the_run_stops(federate, change):
    def damage(message):
        if is_reply(message, "query.fedsens_rekey") and message.metadata.src_node_id == 1000:
            change(message)

    def two_only(grid):
        del grid.nodes[1002]

    with pytest.raises(PhaseError, match="expected two of 2 clients with both keys to put"):
        federate(tap=damage, change=two_only, rotate_at=(3,))


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

    run = federate(
        tap=fingerprints(seen),
        change=as_another_run,
        rotate_at=(3, 5),
        checkpoint_dir=folder,
        resume=True,
    )
    assert sorted(seen) == [4, 5]
    assert seen[4] != seen[5]
    assert run.strategy.model.round == ROUNDS


@pytest.fixture
def two_keys(tmp_path):
    keys = [FederationKey.generate() for _ in range(2)]
    (tmp_path / "keys").mkdir()
    for number, key in enumerate(keys):
        key.save(tmp_path / "keys" / f"{number}.key")
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


def test_the_same_key_twice_is_no_rotation(two_keys, tmp_path, caplog):
    """Every client sees it before the first round, where nothing is lost yet."""
    keys, node_config = two_keys
    (tmp_path / "keys" / "1.key").unlink()
    keys[0].save(tmp_path / "keys" / "1.key")
    grid = LocalGrid(make_app(), 3, node_config=node_config)
    with pytest.raises(PhaseError, match="expected at least 2 clients with the key, got 0"):
        Rotated(grid=grid, rotate_at=(2,), ratio=0.5, rounds=3)
    assert caplog.text.count("KeyMismatchError: expected a key that was never used before") >= 3


def test_with_fingerprints_the_server_accepts_these_keys_only(two_keys):
    keys, node_config = two_keys
    one, two = (key.fingerprint for key in keys)
    options = {"ratio": 0.5, "rounds": 3, "rotate_at": (2,)}
    grid = LocalGrid(make_app(), 3, node_config=node_config)
    run = Rotated(grid=grid, fingerprints=f"{one}, {two}", **options)
    assert run.strategy.model.round == 3
    for wrong in ((two, one), (one, one), ("ab" * 16, two), (one, "ab" * 16)):
        grid = LocalGrid(make_app(), 3, run_id=2, node_config=node_config)
        with pytest.raises(PhaseError):
            Rotated(grid=grid, fingerprints=wrong, **options)
    with pytest.raises(ConfigurationError, match="fingerprints must name 2 keys"):
        Rotated(fingerprints=one, **options)


def test_a_provisioned_client_keeps_no_agreed_key(two_keys):
    _, node_config = two_keys
    store = Client(LocalGrid(make_app(), 1, node_config=node_config).nodes[1000]).store
    with pytest.raises(KeyMismatchError, match="provisioned"):
        store.keep(FederationKey.generate(), key_index=2)
