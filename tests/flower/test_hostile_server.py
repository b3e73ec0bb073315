"""A server that deviates, against the real mod: a named error, nothing else, nothing trained."""

import copy
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedsens import Aggregator, Decryptor, EncryptionMask, FedSensConfig
from fedsens.crypto import MAP_PARAMETERS
from fedsens.errors import PhaseError
from fedsens.flower import LocalGrid, SelectiveEncryption
from fedsens.flower._records import CIPHERTEXT, HEADER, MASK, MODEL_MASK, bytes_to_record

from .federation import Run, initial_arrays, is_reply, is_request, make_app

NODES = (1000, 1001, 1002)
VICTIM = 1000
ROUND = 3  # of the messages that are changed; their model is the result of round 2


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """What a server holds after two rounds: messages, every client's ciphertexts, the sums."""
    folder = tmp_path_factory.mktemp("state")
    requests, updates, maps = {}, {}, {}

    def keep(message):
        kind, content = message.metadata.message_type, message.content
        if is_reply(message):
            header = json.loads(content[HEADER]["json"])
            updates[header["round"], message.metadata.src_node_id] = (
                bytes_of(content, CIPHERTEXT),
                header["weight"],
            )
        elif is_reply(message, "query.fedsens_sensitivity"):
            header = json.loads(content[HEADER]["json"])
            maps[message.metadata.src_node_id] = (bytes_of(content, "fedsens.map"), header)
        elif message.metadata.dst_node_id == VICTIM and is_request(message, kind):
            number = json.loads(content[HEADER]["json"]).get("round", 0)
            if kind == "train" and number == ROUND:  # the state of just before it
                shutil.copytree(folder, before)
            requests[kind, number] = copy.deepcopy(message)

    before = tmp_path_factory.mktemp("before") / "state"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSENS_STATE_DIR", str(folder))
        run = Run(grid=LocalGrid(make_app(), 3, tap=keep), rounds=ROUND, ratio=0.5)
        return SimpleNamespace(
            run=run, requests=requests, updates=updates, maps=maps, state=before, key=run.key
        )


def bytes_of(content, name):
    return b"".join(array.data for array in content[name].values())


def header_of(content, name=HEADER):
    return json.loads(content[name]["json"])


def edit(content, name=HEADER, **fields):
    content[name] = ConfigRecord({"json": json.dumps({**header_of(content, name), **fields})})


def put_sum(content, batches, parameters):
    content[CIPHERTEXT] = bytes_to_record(Aggregator(parameters).sum(batches))


@pytest.fixture
def put(stage, tmp_path):
    """Put a changed message to the victim, whose functions must not run."""
    shutil.copytree(stage.state, tmp_path / "copy")

    def never(message, context):
        pytest.fail("the app's function was called")

    def send(change, kind="train", number=ROUND, app=None, **settings):
        message = copy.deepcopy(stage.requests[kind, number])
        change(message.content)
        if kind.startswith("query."):  # these are of round 1, before any model was opened
            for path in (tmp_path / "copy" / "run-1" / f"node-{VICTIM}").glob("m*-*"):
                path.unlink()
            (tmp_path / "copy" / "run-1" / f"node-{VICTIM}" / "model.json").unlink(missing_ok=True)
        node_config = {"partition-id": 0, "num-partitions": 3}
        node_config["fedsens-state-dir"] = str(tmp_path / "copy")
        node_config |= {f"fedsens-{k.replace('_', '-')}": v for k, v in settings.items()}
        context = Context(1, VICTIM, node_config, RecordDict(), {})
        return (app or make_app(never, never, never))(message, context)

    return send


def assert_refused(reply, error, text=""):
    assert not reply.has_content()
    assert reply.error.reason.startswith(f"{error}: "), reply.error.reason
    assert text in reply.error.reason


def contributors_of(content):
    return header_of(content)["contributors"]


def claim(content, names, weights, **changes):
    who = {**contributors_of(content), "names": list(names), "weights": list(weights), **changes}
    edit(content, contributors=who, weight=sum(weights))


def strategy_of(**options):
    return SelectiveEncryption(FedAvg(), FedSensConfig.create(**options))


class Lies:
    """What is done to a message of round 3 whose aggregate is of round 2."""

    def __init__(self, stage):
        self.stage = stage
        self.parameters = stage.run.strategy.config.parameters
        self.of = {node: stage.updates[2, node] for node in NODES}
        self.weights = [self.of[node][1] for node in NODES]

    def batch(self, node, number=2):
        return self.stage.updates[number, node][0]

    def single_told(self, content):
        put_sum(content, [self.batch(1001)], self.parameters)
        claim(content, ["1001"], [self.of[1001][1]])

    def single_as_the_sum(self, content):
        put_sum(content, [self.batch(1001)], self.parameters)

    def one_update_three_times(self, content):
        put_sum(content, [self.batch(1001)] * 3, self.parameters)

    def three_times_under_three_names(self, content):
        put_sum(content, [self.batch(1001)] * 3, self.parameters)
        claim(content, map(str, NODES), [self.of[1001][1]] * 3)

    def omitted(self, content):
        put_sum(content, [self.batch(1000), self.batch(1001)], self.parameters)

    def omitted_and_not_told(self, content):
        put_sum(content, [self.batch(node) for node in NODES], self.parameters)
        claim(content, ["1000", "1001"], self.weights[:2])

    def repeated_name(self, content):
        claim(content, ["1000", "1001", "1001"], self.weights)

    def lied_weight(self, content):
        first, second, third = self.weights
        claim(content, map(str, NODES), [first + 1e-4, second - 1e-4, third])

    def another_divisor(self, content):
        edit(content, weight=0.5)

    def negative_weight(self, content):
        claim(content, map(str, NODES), [-self.weights[0], *self.weights[1:]])

    def made_up_name(self, content):
        put_sum(content, [self.batch(1000)], self.parameters)
        claim(content, ["1000", "7"], [self.weights[0], 1e-9])

    def of_the_round_before(self, content):
        put_sum(content, [self.batch(node, 1) for node in NODES], self.parameters)

    def one_of_the_round_before(self, content):
        batches = [self.batch(1000), self.batch(1001), self.batch(1002, 1)]
        put_sum(content, batches, self.parameters)

    def a_fresh_update(self, content):
        content[CIPHERTEXT] = bytes_to_record(self.batch(1001))

    def another_run(self, content):
        claim(content, map(str, NODES), self.weights, run="2")

    def another_reference(self, content):
        claim(content, map(str, NODES), self.weights, reference=91.0)

    def called_moved(self, content):
        claim(content, map(str, NODES), self.weights, moved=True)
        edit(content, weight=1.0)

    def no_list(self, content):
        edit(content, contributors=None)


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("lie", "error", "text"),
    [
        ("single_told", "ContributorsError", "at least 2 contributors, got 1"),
        ("single_as_the_sum", "ContributorsError", "in 1 of 1 blocks"),
        ("one_update_three_times", "ContributorsError", "in 1 of 1 blocks"),
        ("three_times_under_three_names", "ContributorsError", "in 1 of 1 blocks"),
        ("omitted", "ContributorsError", "in 1 of 1 blocks"),
        ("omitted_and_not_told", "ContributorsError", "in 1 of 1 blocks"),
        ("repeated_name", "ContributorsError", "1001 2 times"),
        ("lied_weight", "ContributorsError", "in 1 of 1 blocks"),
        ("another_divisor", "ContributorsError", "do not add up"),
        ("negative_weight", "ContributorsError", "not positive"),
        ("made_up_name", "ContributorsError", "got 1 (of 2 named)"),
        ("of_the_round_before", "ContributorsError", "in 1 of 1 blocks"),
        ("one_of_the_round_before", "ContributorsError", "in 1 of 1 blocks"),
        ("a_fresh_update", "ContributorsError", "in 1 of 1 blocks"),
        ("another_run", "ContributorsError", "in 1 of 1 blocks"),
        ("another_reference", "ContributorsError", "in 1 of 1 blocks"),
        ("called_moved", "ContributorsError", "in 1 of 1 blocks"),
        ("no_list", "ProtocolError", "a list of contributors exactly with a ciphertext"),
    ],
)
def test_an_aggregate_that_is_not_what_it_is_said_to_be(stage, put, lie, error, text, kind):
    number = ROUND if kind == "train" else 2
    reply = put(getattr(Lies(stage), lie), kind, number)
    if kind == "evaluate":  # of the same aggregate
        assert header_of(stage.requests[kind, number].content)["model_round"] == 2
    assert_refused(reply, error, text)


def test_the_server_gains_nothing_of_a_client_by_an_aggregate_it_tells_the_truth_about(stage, put):
    """The control: honest, and two of three, with the list that says so."""
    lies = Lies(stage)

    def two_told(content):
        put_sum(content, [lies.batch(1000), lies.batch(1001)], lies.parameters)
        claim(content, ["1000", "1001"], lies.weights[:2])

    assert put(two_told, app=make_app()).has_content()
    assert_refused(put(two_told, min_contributors=3), "ContributorsError", "at least 3")


def drop(*names):
    return lambda content: [content.pop(name, None) for name in names]


def no_protection(content):
    for name in [name for name in content if name.startswith("fedsens.")]:
        content.pop(name)


def with_mask(select):
    def change(content):
        old = bytes_of(content, MASK)
        mask = EncryptionMask.from_bytes(old)
        new = EncryptionMask(select(mask), mask.layout_digest)
        content[MODEL_MASK] = bytes_to_record(old)
        content[MASK] = bytes_to_record(new.to_bytes())
        edit(content, mask=new.digest)

    return change


def another_layout(content):
    layout = json.loads(header_of(content)["layout"])
    edit(content, layout=json.dumps(layout[:-1]))


def a_model_of_the_servers_own(content):
    """Whole and plain, to be answered under the same mask as ever."""
    mask = EncryptionMask.from_bytes(bytes_of(content, MASK))
    empty = EncryptionMask(np.zeros(mask.size, bool), mask.layout_digest)
    content["arrays"] = initial_arrays()
    content[MODEL_MASK] = bytes_to_record(empty.to_bytes())
    content.pop(CIPHERTEXT)
    edit(content, model_mask=empty.digest, weight=0, contributors=None)


LESS = {
    "a whole plain model of the server's own": (a_model_of_the_servers_own, "DowngradeError", {}),
    "no protection at all": (no_protection, "DowngradeError", {}),
    "no mask": (drop(MASK), "ProtocolError", {}),
    "an empty mask": (with_mask(lambda mask: np.zeros(mask.size, bool)), "DowngradeError", {}),
    "a mask below the client's minimum": (
        lambda content: None,
        "DowngradeError",
        {"min_ratio": 0.9},
    ),
    "another layout": (another_layout, "LayoutError|MaskError|ProtocolError", {}),
    "no ciphertext": (drop(CIPHERTEXT), "ProtocolError", {}),
    "an old round": (lambda content: edit(content, round=1), "RoundError", {}),
    "an old model": (lambda content: edit(content, model_round=1), "RoundError", {}),
    "another key": (lambda content: edit(content, fingerprint="ab" * 16), "ProtocolError", {}),
    "another protocol version": (lambda content: edit(content, version=1), "ProtocolError", {}),
}


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize(("change", "error", "settings"), LESS.values(), ids=LESS)
def test_a_message_that_asks_for_less_protection(put, kind, change, error, settings):
    reply = put(change, kind, ROUND, **settings)
    assert not reply.has_content()
    assert reply.error.reason.split(":")[0] in error.split("|"), reply.error.reason


@pytest.mark.parametrize("kinds", [("train", "train"), ("train", "evaluate"), ("evaluate",) * 2])
def test_a_second_mask_in_one_round(put, kinds):
    """Two complementary masks in one round would show the whole update."""
    first, second = kinds
    other = with_mask(lambda mask: ~mask.selected)
    assert put(lambda content: None, first, app=make_app()).has_content()
    assert_refused(put(other, second), "MaskError", "two masks in one round")
    assert put(lambda content: None, second, app=make_app()).has_content()  # the first one holds


def test_the_mask_is_bound_before_training(put):
    """A message that fails in training has decided on the mask, too."""

    def fail(message, context):
        raise ValueError

    assert put(lambda content: None, app=make_app(fail)).has_error()
    other = with_mask(lambda mask: ~mask.selected)
    assert_refused(put(other), "MaskError", "began with")


def test_different_masks_for_two_clients_are_noticed_when_the_sum_is_opened():
    """The visible parts were sent by then, but the aggregate opens for nobody."""
    asked = []

    def meddle(message):
        if is_request(message):
            asked.append(header_of(message.content)["mask"])
            if message.metadata.dst_node_id == 1002:
                old = EncryptionMask.from_bytes(bytes_of(message.content, MASK))
                selected = old.selected.copy()
                selected[:48] = np.roll(selected[:48], 1)  # as many of every tensor
                new = EncryptionMask(selected, old.layout_digest)
                message.content[MASK] = bytes_to_record(new.to_bytes())
                edit(message.content, mask=new.digest)
        elif is_reply(message) and message.metadata.src_node_id == 1002:
            edit(message.content, mask=asked[0])  # so that the honest half of the server takes it

    grid = LocalGrid(make_app(), 3, tap=meddle)
    with pytest.raises(PhaseError, match=r"the evaluation of round 1.*3 refusals.*Contributors"):
        strategy_of(ratio=0.5, policy="random").start(grid, initial_arrays(), 2)


class Maps:
    """What is done to the request for a mask."""

    def __init__(self, stage):
        self.stage = stage

    def replace(self, content, nodes, **who):
        batches = [self.stage.maps[node][0] for node in nodes]
        content["fedsens.map"] = bytes_to_record(Aggregator(MAP_PARAMETERS).sum(batches))
        old = header_of(content, "fedsens.request")["contributors"]
        edit(content, "fedsens.request", contributors={**old, **who})

    def single_told(self, content):
        weight = self.stage.maps[1001][1]["weight"]
        self.replace(content, [1001], names=["1001"], weights=[weight])

    def single_as_the_sum(self, content):
        self.replace(content, [1001])

    def three_times(self, content):
        self.replace(content, [1001] * 3)

    def omitted(self, content):
        self.replace(content, [1000, 1001])

    def repeated_name(self, content):
        self.replace(content, NODES, names=["1000", "1001", "1001"])

    def lied_reference(self, content):
        self.replace(content, NODES, reference=91.0)

    def another_run(self, content):
        self.replace(content, NODES, run="2")

    def no_list(self, content):
        edit(content, "fedsens.request", contributors=None)

    def model_as_map(self, content):
        content["fedsens.map"] = bytes_to_record(self.stage.updates[1, 1001][0])


@pytest.mark.parametrize(
    ("lie", "error", "text"),
    [
        ("single_told", "ContributorsError", "at least 2"),
        ("single_as_the_sum", "ContributorsError", "in 1 of 1 blocks"),
        ("three_times", "ContributorsError", "in 1 of 1 blocks"),
        ("omitted", "ContributorsError", "in 1 of 1 blocks"),
        ("repeated_name", "ContributorsError", "2 times"),
        ("lied_reference", "ContributorsError", "in 1 of 1 blocks"),
        ("another_run", "ProtocolError", "this run's clients"),
        ("no_list", "ProtocolError", "this run's clients"),
        ("model_as_map", "KeyMismatchError", ""),
    ],
)
def test_a_map_that_is_not_the_sum_makes_no_mask(stage, put, lie, error, text):
    assert_refused(put(getattr(Maps(stage), lie), "query.fedsens_mask", 1), error, text)


def test_the_honest_map_makes_a_mask(stage, put):
    assert list(put(lambda content: None, "query.fedsens_mask", 1).content) == [MASK]
    reply = put(lambda content: None, "query.fedsens_mask", 1, min_contributors=4)
    assert_refused(reply, "ContributorsError", "at least 4 contributors, got 3")


def test_no_reply_of_a_refusal_quotes_the_opened_values(stage, put):
    lies = Lies(stage)
    reply = put(lies.single_as_the_sum)
    values = Decryptor(stage.key.using(lies.parameters)).decrypt(lies.batch(1001))
    for value in values[:200]:
        assert f"{value:.4f}" not in reply.error.reason


POISON = 1001


def poisoning(number):
    """One client that holds the key sends values that the others did not make with it."""

    def meddle(message):
        if is_reply(message) and message.metadata.src_node_id == POISON:
            header = header_of(message.content)
            if header["round"] == number:
                edit(message.content, contributor="77" * 32)  # its tags are for another name

    return meddle


def test_a_run_whose_model_all_clients_refuse_stops_and_says_how_to_go_back(tmp_path):
    folder = tmp_path / "checkpoints"
    options = {"ratio": 0.5, "policy": "random", "checkpoint_dir": folder}
    grid = LocalGrid(make_app(), 3, tap=poisoning(3))
    with pytest.raises(PhaseError, match=r"model of round 3 .*delete round-000003.safetensors"):
        strategy_of(**options).start(grid, initial_arrays(), 5)
    assert sorted(path.name for path in folder.iterdir()) == [
        "round-000002.safetensors",
        "round-000003.safetensors",
    ]
    (folder / "round-000003.safetensors").unlink()
    again = LocalGrid(make_app(), 3, run_id=2)
    resumed = strategy_of(resume=True, **options)
    resumed.start(again, initial_arrays(), 4)
    clients = {r.round: r.clients for r in resumed.reports if r.phase == "train"}
    assert clients == {1: 3, 2: 3, 3: 3, 4: 3}


def test_without_checkpoints_the_error_says_so():
    grid = LocalGrid(make_app(), 3, tap=poisoning(1))
    with pytest.raises(PhaseError, match=r"start anew, with fedsens\.checkpoint-dir"):
        strategy_of(ratio=0.5, policy="random").start(grid, initial_arrays(), 2)


def test_a_client_refuses_a_model_beyond_its_norm_and_the_others_go_on(caplog):
    def one_is_strict(node, grid):
        grid.nodes[node].node_config["fedsens-max-norm"] = 0.1
        return grid

    grid = one_is_strict(1002, LocalGrid(make_app(), 3))
    run = Run(grid=grid, rounds=2, ratio=0.5, policy="random")
    assert [(r.clients, r.lost) for r in run.reports("train")] == [(2, 1), (2, 1)]
    assert "ModelError: expected a global model of L2 norm at most 0.1" in caplog.text
    generous = LocalGrid(make_app(), 3, run_id=2, node_config={"fedsens-max-norm": 100.0})
    assert Run(grid=generous, rounds=2, ratio=0.5).reports("train")[1].clients == 3


def test_a_plaintext_remainder_that_is_no_number_is_refused_by_name(put):
    def spoil(content):
        arrays = {name: array.numpy().copy() for name, array in content["arrays"].items()}
        name = next(n for n, a in arrays.items() if a.dtype.kind == "f" and a.size)
        arrays[name].flat[0] = np.nan
        content["arrays"] = ArrayRecord({n: Array(a) for n, a in arrays.items()})

    assert_refused(put(spoil), "ModelError", "NaN or infinity in 0.weight")
