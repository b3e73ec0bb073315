"""A server that deviates, against the real mod: a named error, nothing else, nothing trained."""

import copy
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedsens import Aggregator, EncryptionMask, crypto
from fedsens._files import sorted_digest
from fedsens.crypto import MAP_PARAMETERS
from fedsens.crypto._wire import checksum
from fedsens.errors import PhaseError
from fedsens.flower import LocalGrid, SelectiveEncryption
from fedsens.flower._records import (
    CIPHERTEXT,
    HEADER,
    KEY_ANSWER,
    KEY_SUM,
    LIST_REFUSED,
    MAP,
    MAP_KEY_SUM,
    MASK,
    MODEL_MASK,
    MODEL_REFUSED,
    REFUSED,
    bytes_to_record,
    take_model,
    to_record,
)
from fedsens.keys import _opening
from fedsens.layout import ParameterLayout
from fedsens.mask import select_mask
from fedsens.protocol import sum_answers

from .federation import Run, arrays_of, config_of, initial_arrays, is_reply, is_request, make_app

NODES = (1000, 1001, 1002)
VICTIM = 1000
ROUND = 3  # of the messages that are changed; their model is the result of round 2
ONE_TEXT = f"ModelError: {_opening.REFUSED}"


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """What a server holds after three rounds: messages, every client's uploads and keys."""
    folder = tmp_path_factory.mktemp("state")
    requests, updates, maps = {}, {}, {}
    keys = {MAP: {}, 1: {}, 2: {}, 3: {}}

    def keep(message):
        metadata, content = message.metadata, message.content
        kind, node = metadata.message_type, metadata.src_node_id
        if is_reply(message):
            number = 1 + sum(key[1] == node for key in updates)
            updates[number, node] = bytes_of(content, CIPHERTEXT), header_of(content)
        elif is_reply(message, "query.fedsens_sensitivity"):
            maps[node] = bytes_of(content, MAP), header_of(content)
        elif is_reply(message, "query.fedsens_key_sum"):
            first = next(answers for answers in keys.values() if node not in answers)
            first[node] = bytes_of(content, KEY_ANSWER)
        elif metadata.dst_node_id == VICTIM and is_request(message, kind):
            number = header_of(content).get("round", 0)
            if kind == "train" and number == ROUND:  # the state of just before it
                shutil.copytree(folder, before)
            requests[kind, number] = copy.deepcopy(message)

    before = tmp_path_factory.mktemp("before") / "state"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSENS_STATE_DIR", str(folder))
        run = Run(grid=LocalGrid(make_app(), 3, tap=keep), rounds=ROUND, ratio=0.5)
        return SimpleNamespace(
            run=run,
            requests=requests,
            updates=updates,
            maps=maps,
            keys=keys,
            state=before,
            key=run.key,
        )


def bytes_of(content, name):
    return b"".join(array.data for array in content[name].values())


def header_of(content, name=HEADER):
    return json.loads(content[name]["json"])


def edit(content, name=HEADER, **fields):
    content[name] = ConfigRecord({"json": json.dumps({**header_of(content, name), **fields})})


def member(header):
    """What an upload's header says about its contributor."""
    return {key: header[key] for key in ("name", "weight", "nonce")}


def added(parameters, uploads):
    """The sum of ciphertexts, of their tags, and the list, in order: all that a server can add."""
    headers = [header for _, header in uploads]
    modulus = parameters.wire_modulus
    return SimpleNamespace(
        ciphertext=Aggregator(parameters).sum([data for data, _ in uploads]),
        tags=[sum(column) % modulus for column in zip(*(h["tags"] for h in headers), strict=True)],
        members=sorted(map(member, headers), key=lambda each: each["name"]),
    )


@pytest.fixture
def secrets(monkeypatch):
    """The secrets that a client decrypts with, whatever it answers."""
    seen = []

    class Observed(crypto.Decryptor):
        def decrypt(self, data, secret, *more):
            seen.append(secret.to_array().tolist())
            return super().decrypt(data, secret, *more)

    monkeypatch.setattr(crypto, "Decryptor", Observed)
    return seen


@pytest.fixture
def put(stage, tmp_path):
    """Put a changed message to the victim, whose functions must not run."""
    shutil.copytree(stage.state, tmp_path / "copy")

    def never(message, context):
        pytest.fail("the app's function was called")

    def send(
        change,
        kind="train",
        number=ROUND,
        app=None,
        new=True,
        forget=False,
        asked_as=None,
        run=1,
        **settings,
    ):
        message = copy.deepcopy(stage.requests[kind, number])
        message.metadata.message_type = asked_as or kind
        change(message.content)
        if forget:  # as a client that has answered nothing in this run, but saw how it began
            for path in (tmp_path / "copy" / "run-1" / f"node-{VICTIM}").glob("[mu]*"):
                path.unlink()
            (tmp_path / "copy" / "run-1" / "mask-terms").unlink(missing_ok=True)
        if new and kind.startswith("query."):  # these are of round 1, before any model was opened
            folder = tmp_path / "copy" / "run-1" / f"node-{VICTIM}"
            for path in [folder / "model.json", *folder.glob("mask*")]:
                path.unlink(missing_ok=True)
        node_config = {"partition-id": 0, "num-partitions": 3}
        node_config["fedsens-state-dir"] = str(tmp_path / "copy")
        node_config |= {f"fedsens-{k.replace('_', '-')}": v for k, v in settings.items()}
        context = Context(run, VICTIM, node_config, RecordDict(), {})
        return (app or make_app(never, never, never))(message, context)

    return send


def assert_refused(reply, error, text=""):
    assert not reply.has_content()
    assert reply.error.reason.startswith(f"{error}: "), reply.error.reason
    assert text in reply.error.reason
    codes = {"ModelError": MODEL_REFUSED, "ContributorsError": LIST_REFUSED}
    assert reply.error.code == codes.get(error, REFUSED)


def strategy_of(**options):
    return SelectiveEncryption(FedAvg(), config_of(**options))


class Lies:
    """What is done to a message of round 3 whose aggregate is of round 2."""

    def __init__(self, stage):
        self.stage = stage
        self.parameters = stage.run.strategy.config.parameters

    def uploads(self, nodes=NODES, number=2):
        return [self.stage.updates[number, node] for node in nodes]

    def of(self, content):
        return header_of(content)["aggregate"]

    def claim(self, content, **changes):
        """Change what is said about the aggregate."""
        edit(content, aggregate={**self.of(content), **changes})

    def claim_members(self, content, *members):
        self.claim(content, contributors={"members": list(members)})

    def claim_context(self, content, **changes):
        self.claim(content, context={**self.of(content)["context"], **changes})

    def members(self, content):
        return self.of(content)["contributors"]["members"]

    def put_sum(self, content, uploads, keys=None, told=True):
        """Another sum with its tags, and, if told, its list; and the sum of some nodes' keys."""
        total = added(self.parameters, uploads)
        content[CIPHERTEXT] = bytes_to_record(total.ciphertext)
        self.claim(content, tags=total.tags)
        if told:
            self.claim_members(content, *total.members)
        if keys is not None:
            content[KEY_SUM] = bytes_to_record(sum_answers(keys))

    def keys(self, *nodes, number=2):
        return [self.stage.keys[number][node] for node in nodes]

    def single_told(self, content):
        self.put_sum(content, self.uploads([1001]), self.keys(1001))

    def single_as_the_sum(self, content):
        self.put_sum(content, self.uploads([1001]), self.keys(1001), told=False)

    def one_update_three_times(self, content):
        self.put_sum(content, self.uploads([1001] * 3), told=False)

    def one_update_three_times_and_its_key(self, content):
        self.put_sum(content, self.uploads([1001] * 3), self.keys(*[1001] * 3), told=False)

    def three_times_under_three_names(self, content):
        honest = self.members(content)
        self.put_sum(content, self.uploads([1001] * 3))
        one = self.members(content)[0]
        self.claim_members(content, *({**one, "name": each["name"]} for each in honest))

    def omitted(self, content):
        self.put_sum(content, self.uploads([1000, 1001]), told=False)

    def omitted_and_told(self, content):
        self.put_sum(content, self.uploads([1000, 1001]), self.keys(1000, 1001))

    def omitted_and_told_without_the_key(self, content):
        self.put_sum(content, self.uploads([1000, 1001]))

    def omitted_and_not_told(self, content):
        self.claim_members(content, *self.members(content)[:2])

    def repeated_name(self, content):
        first, second, third = self.members(content)
        self.claim_members(content, first, second, {**third, "name": second["name"]})

    def out_of_order(self, content):
        self.claim_members(content, *reversed(self.members(content)))

    def lied_weight(self, content):
        first, second, third = self.members(content)
        more, less = first["weight"] + 1e-4, second["weight"] - 1e-4
        self.claim_members(content, {**first, "weight": more}, {**second, "weight": less}, third)

    def smallest_change_of_a_weight(self, content):
        first, *others = self.members(content)
        more = float(np.nextafter(first["weight"], 2))
        self.claim_members(content, {**first, "weight": more}, *others)

    def swapped_weights(self, content):
        first, second, third = self.members(content)
        one, other = {"weight": second["weight"]}, {"weight": first["weight"]}
        self.claim_members(content, {**first, **one}, {**second, **other}, third)

    def another_nonce(self, content):
        first, *others = self.members(content)
        self.claim_members(content, {**first, "nonce": "ab" * 16}, *others)

    def negative_weight(self, content):
        first, *others = self.members(content)
        self.claim_members(content, {**first, "weight": -first["weight"]}, *others)

    def made_up_name(self, content):
        *others, last = self.members(content)
        self.claim_members(content, *others, {**last, "name": "f" * 64})

    def another_tag(self, content):
        first, *others = self.of(content)["tags"]
        self.claim(content, tags=[(first + 1) % self.parameters.wire_modulus, *others])

    def fewer_tags(self, content):
        self.claim(content, tags=self.of(content)["tags"][:-1])

    def no_tags(self, content):
        self.claim(content, tags=[])

    def another_residue(self, content):
        """One, by one, with the tags as they were."""
        honest = bytes_of(content, CIPHERTEXT)
        data = bytearray(honest)
        data[40] ^= 1  # the low byte of the first residue
        content[CIPHERTEXT] = bytes_to_record(with_checksum(bytes(data)))

    def another_key_sum(self, content):
        """One coefficient, by one."""
        words = np.frombuffer(bytes_of(content, KEY_SUM), "<u2").copy()
        words[7] += 1
        content[KEY_SUM] = bytes_to_record(words.tobytes())

    def all_else_of_the_round_before(self, content):
        self.put_sum(content, self.uploads(number=1), self.keys(*NODES, number=1))

    def wholly_of_the_round_before(self, content):
        honest = header_of(self.stage.requests["train", 2].content)["aggregate"]
        self.put_sum(content, self.uploads(number=1), self.keys(*NODES, number=1))
        self.claim(content, context=honest["context"])

    def one_of_the_round_before(self, content):
        uploads = self.uploads([1000, 1001]) + self.uploads([1002], 1)
        self.put_sum(content, uploads)

    def one_map_of_a_client(self, content):
        content[CIPHERTEXT] = bytes_to_record(self.stage.maps[1001][0])

    def a_fresh_update(self, content):
        content[CIPHERTEXT] = bytes_to_record(self.uploads([1001])[0][0])

    def another_run(self, content):
        self.claim_context(content, run="2")

    def another_reference(self, content):
        self.claim_context(content, reference=91.0)

    def another_base(self, content):
        self.claim_context(content, base="ab" * 32)

    def another_cohort(self, content):
        self.claim_context(content, cohort="ab" * 32)

    def another_count(self, content):
        self.claim_context(content, weighted_by="rows")

    def another_mask_before(self, content):
        self.claim_context(content, model_mask="ab" * 32)

    def another_kind(self, content):
        self.claim_context(content, kind="map")

    def another_mask(self, content):
        self.claim_context(content, mask="ab" * 32)

    def called_rekeyed(self, content):
        self.claim_context(content, fingerprint="ab" * 16)

    def another_key(self, content):
        self.claim(content, fingerprint="ab" * 16)

    def no_list(self, content):
        edit(content, aggregate=None)


def with_checksum(data):
    return data[:-4] + checksum(data[:-4])


PUBLIC = {  # what the server knows as well as the client, and may be told
    "single_told": ("ContributorsError", "at least 2 contributors, got 1"),
    "single_as_the_sum": ("ProtocolError", "a sum of 3 ciphertexts of 57 values"),
    "omitted": ("ProtocolError", "a sum of 3 ciphertexts of 57 values"),
    "omitted_and_not_told": ("ProtocolError", "a sum of 2 ciphertexts of 57 values"),
    "repeated_name": ("ContributorsError", "2 times"),
    "out_of_order": ("ContributorsError", "names out of order"),
    "negative_weight": ("ProtocolError", "wrong aggregate"),
    "one_map_of_a_client": ("KeyMismatchError", "under the parameters"),
    "a_fresh_update": ("ProtocolError", "a sum of 3 ciphertexts of 57 values"),
    "wholly_of_the_round_before": ("ProtocolError", "this model's round"),
    "another_kind": ("ProtocolError", "this model's round"),
    "another_mask": ("ProtocolError", "this model's round, layout, mask"),
    "another_key": ("ProtocolError", "give every client the same key"),
    "no_list": ("ProtocolError", "a ciphertext exactly when coordinates are masked"),
}
SECRET = [
    "one_update_three_times",
    "one_update_three_times_and_its_key",
    "three_times_under_three_names",
    "omitted_and_told",
    "omitted_and_told_without_the_key",
    "lied_weight",
    "smallest_change_of_a_weight",
    "swapped_weights",
    "another_nonce",
    "made_up_name",
    "another_tag",
    "fewer_tags",
    "no_tags",
    "another_residue",
    "another_key_sum",
    "all_else_of_the_round_before",
    "one_of_the_round_before",
    "another_run",
    "another_reference",
    "another_base",
    "another_cohort",
    "another_count",
    "another_mask_before",
    "called_rekeyed",
]


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize("lie", [*PUBLIC, *SECRET])
def test_a01_a04_an_aggregate_that_is_not_what_it_is_said_to_be(stage, put, secrets, lie, kind):
    """Behind the public checks there is one error, and the one work of one decryption.

    What is decrypted with the real sum of the secrets is the genuine sum alone.
    """
    number = ROUND if kind == "train" else 2
    if kind == "evaluate":  # of the same aggregate
        assert header_of(stage.requests[kind, number].content)["model_round"] == 2
    reply = put(getattr(Lies(stage), lie), kind, number)
    if lie in PUBLIC:
        assert_refused(reply, *PUBLIC[lie])
        assert not secrets
    else:
        assert (reply.error.reason, reply.error.code) == (ONE_TEXT, MODEL_REFUSED)
        assert len(secrets) == 1
        assert real_secret(stage) not in secrets


def real_secret(stage):
    """The sum of the secrets of round 2, as a holder of the key comes to know it."""
    answers = [stage.keys[2][node] for node in NODES]
    header = stage.requests["train", ROUND].content
    model, _ = take_model(copy.deepcopy(header))
    assert model.aggregate.key_sum == sum_answers(answers)
    return _opening._secret_of(model.aggregate, stage.key).to_array().tolist()


def test_the_honest_aggregate_opens_with_the_real_secret(stage, put, secrets):
    """The control."""
    assert put(lambda content: None, app=make_app()).has_content()
    assert secrets == [real_secret(stage)]
    reply = put(lambda content: None, min_contributors=4)
    assert_refused(reply, "ContributorsError", "at least 4")


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
    drop(CIPHERTEXT, KEY_SUM)(content)
    edit(content, model_mask=empty.digest, aggregate=None)


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
    "an old model": (lambda content: edit(content, model_round=1), "ProtocolError", {}),
    "another key": (lambda content: edit(content, fingerprint="ab" * 16), "ProtocolError", {}),
    "another protocol version": (lambda content: edit(content, version=1), "ProtocolError", {}),
}


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize(("change", "error", "settings"), LESS.values(), ids=LESS)
def test_a_message_that_asks_for_less_protection(put, kind, change, error, settings):
    reply = put(change, kind, ROUND, **settings)
    assert not reply.has_content()
    assert reply.error.reason.split(":")[0] in error.split("|"), reply.error.reason


@pytest.mark.parametrize("change", ["nothing", "the mask", "the configuration", "a later round"])
def test_a05_a_second_upload_in_one_round(put, change):
    """Two complementary masks would show the whole update; two of one the difference."""
    changes = {
        "nothing": lambda content: None,
        "the mask": with_mask(lambda mask: ~mask.selected),
        "the configuration": lambda content: content["config"].update({"lr": 2.0}),
        "a later round": lambda content: edit(content, round=ROUND - 1),
    }
    first = "DowngradeError" if change == "the mask" else "RoundError"
    assert put(lambda content: None, app=make_app()).has_content()
    assert_refused(put(changes[change]), first)
    assert put(lambda content: None, "evaluate", app=make_app()).has_content()
    assert_refused(put(changes[change]), "RoundError")


def test_an_upload_is_begun_before_training(put):
    """A message that fails in training is the only one of its round, too."""

    def fail(message, context):
        raise ValueError

    assert put(lambda content: None, app=make_app(fail)).has_error()
    assert_refused(put(lambda content: None), "RoundError", "answered already")
    other = with_mask(lambda mask: ~mask.selected)
    assert_refused(put(other), "DowngradeError", "covers whatever an earlier one")


def context_of(content):
    """D of the answer to a message of run 1."""
    _, received = take_model(copy.deepcopy(content))
    return received.header.context("update", "1", received.base).digest.hex()


class TwoMasks(LocalGrid):
    """Tells one client another mask, and the honest half of the server that it did not.

    The clients let the server see maps, so that it chooses the mask and nobody else vouches for it.
    """

    def __init__(self, lies_about_keys):
        allowed = {"fedsens-allow-plain-maps": "true"}
        super().__init__(make_app(), 3, tap=self._meddle, node_config=allowed)
        self._lies, self._honest, self._other = lies_about_keys, "", ""

    def _meddle(self, message):
        metadata = message.metadata
        if is_request(message) and metadata.dst_node_id == 1002:
            self._honest = context_of(message.content)
            old = EncryptionMask.from_bytes(bytes_of(message.content, MASK))
            selected = old.selected.copy()
            selected[:48] = np.roll(selected[:48], 1)  # as many of every tensor
            new = EncryptionMask(selected, old.layout_digest)
            message.content[MASK] = bytes_to_record(new.to_bytes())
            edit(message.content, mask=new.digest)
            self._other = context_of(message.content)
        elif is_reply(message) and metadata.src_node_id == 1002:
            assert header_of(message.content)["context"] == self._other
            edit(message.content, context=self._honest)
        elif is_request(message, "query.fedsens_key_sum") and metadata.dst_node_id == 1002:
            edit(message.content, context=self._other if self._lies else self._honest)


def test_a02_different_masks_for_two_clients_void_the_round(caplog):
    """The client does not give its key for an upload that it did not make."""
    with pytest.raises(PhaseError, match="changed the model, got none of 1"):
        Run(grid=TwoMasks(False), rounds=1, ratio=0.5, maps="plain")
    assert "expected a list within the context of this client's upload" in caplog.text
    assert "got none from node 1002; the sum cannot be opened and is dropped" in caplog.text


def test_different_masks_for_two_clients_with_a_list_for_each_open_for_nobody():
    """The visible parts were sent by then, but the pads do not cancel."""
    options = {"ratio": 0.5, "maps": "plain", "train_min_clients": 3}
    with pytest.raises(PhaseError, match=r"the evaluate of round 1.*3 refusals.*ModelError"):
        strategy_of(**options).start(TwoMasks(True), initial_arrays(), 2)


class Maps:
    """What is done to the request for a mask."""

    def __init__(self, stage):
        self.stage = stage

    def claim(self, content, **changes):
        aggregate = header_of(content, "fedsens.request")["aggregate"]
        edit(content, "fedsens.request", aggregate={**aggregate, **changes})

    def replace(self, content, nodes, told=True):
        total = added(MAP_PARAMETERS, [self.stage.maps[node] for node in nodes])
        content[MAP] = bytes_to_record(total.ciphertext)
        answers = [self.stage.keys[MAP][node] for node in nodes]
        content[MAP_KEY_SUM] = bytes_to_record(sum_answers(answers))
        self.claim(content, tags=total.tags)
        if told:
            self.claim(content, contributors={"members": total.members})

    def single_told(self, content):
        self.replace(content, [1001])

    def single_as_the_sum(self, content):
        self.replace(content, [1001], told=False)

    def three_times(self, content):
        self.replace(content, [1001] * 3, told=False)

    def omitted_and_told(self, content):
        self.replace(content, [1000, 1001])

    def repeated_name(self, content):
        self.replace(content, [1000, 1001, 1001])

    def _context(self, content, **changes):
        context = header_of(content, "fedsens.request")["aggregate"]["context"]
        self.claim(content, context={**context, **changes})

    def lied_reference(self, content):
        self._context(content, reference=91.0)

    def another_base(self, content):
        self._context(content, base="ab" * 32)

    def another_run(self, content):
        self._context(content, run="2")

    def another_round(self, content):
        self._context(content, round=2)

    def no_list(self, content):
        edit(content, "fedsens.request", aggregate=None)

    def updates_as_maps(self, content):
        """The sum of the updates, with all that the clients gave for it."""
        model = self.stage.requests["train", 2].content
        self.claim(content, **header_of(model)["aggregate"])
        content[MAP], content[MAP_KEY_SUM] = model[CIPHERTEXT], model[KEY_SUM]


@pytest.mark.parametrize(
    ("lie", "error", "text"),
    [
        ("single_told", "ContributorsError", "at least 2"),
        ("single_as_the_sum", "ProtocolError", "a sum of 3 ciphertexts"),
        ("three_times", "ModelError", ONE_TEXT),
        ("omitted_and_told", "ModelError", ONE_TEXT),
        ("repeated_name", "ContributorsError", "2 times"),
        ("lied_reference", "ModelError", ONE_TEXT),
        ("another_base", "ModelError", ONE_TEXT),
        ("another_run", "ProtocolError", "maps of this run, round and model"),
        ("another_round", "ProtocolError", "maps of this run, round and model"),
        ("no_list", "ConfigurationError", "expected scores for policy"),
        ("updates_as_maps", "ProtocolError", "maps of this run, round and model"),
    ],
)
def test_a_map_that_is_not_the_sum_makes_no_mask(stage, put, lie, error, text):
    reply = put(getattr(Maps(stage), lie), "query.fedsens_mask", 1)
    assert not reply.has_content()
    assert reply.error.reason.split(":")[0] in error.split("|"), reply.error.reason
    assert text in reply.error.reason


def test_the_honest_map_makes_a_mask(stage, put):
    honest = lambda content: None  # noqa: E731
    assert set(put(honest, "query.fedsens_mask", 1).content) == {HEADER, MASK}
    reply = put(honest, "query.fedsens_mask", 1, min_contributors=4)
    assert_refused(reply, "ContributorsError", "at least 4 contributors, got 3")


def as_a_mask_of(number, **terms):
    """Asks for a mask of the model of a training message, in a round of one's own making."""

    def change(content):
        edit(content, round=number, cohort=[], origin=None)
        origin = {"round": number, "policy": "magnitude", "ratio": 0.3, **terms}
        content["fedsens.request"] = ConfigRecord({
            "json": json.dumps({"version": 3, "moves": False, "aggregate": None, "origin": origin})
        })

    return change


@pytest.mark.parametrize("run", [1, 2, 10])
@pytest.mark.parametrize("terms", [{"ratio": 0.29}, {"policy": "front"}, {"force": ["2.*"]}])
def test_a15_one_model_gets_masks_at_one_ratio(stage, put, tmp_path, run, terms):
    """Rounds and runs of the server's own making tell no order: each ratio would tell a rank."""
    stage.key.save(tmp_path / "key")
    asked = {"asked_as": "query.fedsens_mask", "key_file": tmp_path / "key"}
    assert put(as_a_mask_of(ROUND), **asked, forget=True).has_content()
    assert put(as_a_mask_of(ROUND + 1), **asked, run=run).has_content()  # the same is no news
    reply = put(as_a_mask_of(ROUND + 2, **terms), **asked, run=run)
    assert_refused(reply, "DowngradeError", "the order of the scores")


@pytest.mark.parametrize("least", [0, 1, 0.5], ids=["none", "one", "half"])
@pytest.mark.parametrize("written", [0.05, 0.3])
def test_a15_a_mask_tells_no_order_of_secret_weights(stage, put, tmp_path, least, written):
    """With visible values of the server's own it would tell which secret ones are above them."""
    stage.key.save(tmp_path / "key")

    def compare(content):
        layout = ParameterLayout.from_json(header_of(content)["layout"])
        mask = EncryptionMask.from_bytes(bytes_of(content, MASK))
        places = np.flatnonzero(mask.selected)
        kept = np.zeros(layout.size, bool)
        kept[places[: int(least * len(places)) if least < 1 else -1]] = True
        fewer = EncryptionMask(kept, layout.digest)
        content[MODEL_MASK] = bytes_to_record(mask.to_bytes())
        content.pop(MASK)
        if fewer.k:
            content[MASK] = bytes_to_record(fewer.to_bytes())
        arrays = arrays_of(content["arrays"])
        plain = {
            n: np.full_like(a, written) if a.dtype.kind == "f" else a for n, a in arrays.items()
        }
        content["arrays"] = to_record(plain)
        as_a_mask_of(ROUND)(content)
        edit(content, mask=fewer.digest)

    asked = {"asked_as": "query.fedsens_mask", "key_file": tmp_path / "key"}
    reply = put(compare, **asked, forget=True)
    assert_refused(reply, "DowngradeError", "that covers whatever an earlier one")
    assert put(as_a_mask_of(ROUND), **asked, forget=True).has_content()


@pytest.mark.parametrize("change", ["nothing", "the policy", "the ratio"])
def test_a02_a15_a_holder_makes_one_mask_a_round(put, change):
    """Each further one would tell the order of the maps, or of the weights that it opened."""

    def again(content):
        origin = header_of(content, "fedsens.request")["origin"]
        new = {"the policy": {"policy": "magnitude"}, "the ratio": {"ratio": 0.1}}
        edit(content, "fedsens.request", origin={**origin, **new.get(change, {})})

    assert put(lambda content: None, "query.fedsens_mask", 1).has_content()
    reply = put(again, "query.fedsens_mask", 1, new=False)
    refused = ("RoundError", "answered already") if change == "nothing" else ("DowngradeError", "")
    assert_refused(reply, *refused)


def by_policy(policy, **terms):
    """A mask of the server's own choice that is, or claims to be, by a policy without secrets."""

    def change(content):
        mask, layout = EncryptionMask.from_bytes(bytes_of(content, MASK)), header_of(content)
        if not terms.pop("claimed", False):
            layout = ParameterLayout.from_json(layout["layout"])
            mask = select_mask(None, layout, policy, 0.5)
        with_mask(lambda old: mask.selected)(content)
        origin = {"round": ROUND, "policy": policy, "ratio": 0.5, **terms}
        edit(content, origin=origin)

    return change


def certificate(**changes):
    return lambda content: edit(content, origin={**header_of(content)["origin"], **changes})


FORGED = {
    "another mask": with_mask(lambda mask: np.roll(mask.selected, 1)),
    "no origin": lambda content: edit(content, origin=None),
    "no certificate": certificate(certificate=""),
    "another certificate": certificate(certificate="ab" * 32),
    "another ratio": certificate(ratio=0.4),
    "another seed": certificate(seed=1),
    "another round": certificate(round=2),
    "another run": certificate(run="2"),
    "claimed to be random": by_policy("random", claimed=True),
    "an unknown policy": certificate(policy="whatever"),
}


@pytest.mark.parametrize("change", FORGED.values(), ids=FORGED)
def test_a08_a_mask_that_no_holder_vouches_for_is_refused(put, change, tmp_path):
    """Even by an owner who lets masks move, and by a client that saw no mask before."""

    def forget(content):
        (tmp_path / "copy" / "run-1" / f"node-{VICTIM}" / "mask").unlink()
        change(content)

    reply = put(forget, moving_masks=True)
    assert not reply.has_content()
    assert reply.error.reason.split(":")[0] in {"DowngradeError", "ConfigurationError"}


def test_a08_what_was_masked_stays_masked(put, tmp_path):
    """The trained model, frozen, under another mask each round would show the whole of it."""
    move = by_policy("random")
    assert_refused(put(move), "DowngradeError", "covers whatever an earlier one")
    (tmp_path / "copy" / "run-1" / f"node-{VICTIM}" / "mask").unlink()  # as of another run
    assert_refused(put(move), "DowngradeError", "covers whatever an earlier one")
    assert put(move, app=make_app(), moving_masks=True).has_content()


POISON = 1001


def poisoning(number):
    """One client that holds the key sends values that the others did not make with it."""

    answered = []

    def meddle(message):
        if is_reply(message) and message.metadata.src_node_id == POISON:
            answered.append(POISON)
            if len(answered) == number:
                edit(message.content, tags=[1, 2, 3, 4])  # of another ciphertext

    return meddle


def test_a_run_whose_model_all_clients_refuse_stops_and_says_how_to_go_back(tmp_path):
    folder = tmp_path / "checkpoints"
    options = {"ratio": 0.5, "policy": "random", "checkpoint_dir": folder}
    options["train_min_clients"] = 3  # nobody can be left out to find who spoils sums
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
    options = {"ratio": 0.5, "policy": "random", "train_min_clients": 3}
    with pytest.raises(PhaseError, match=r"start anew, with fedsens\.checkpoint-dir"):
        strategy_of(**options).start(grid, initial_arrays(), 2)


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


def initial(values, number=1):
    """A plain model of the server's making instead of the run's initial one."""

    def change(content):
        arrays = arrays_of(initial_arrays())
        made = {name: np.full(a.shape, values, a.dtype) for name, a in arrays.items()}
        content["arrays"] = to_record(made)
        edit(content, round=number)

    return change


def test_a03_no_initial_model_is_evaluated(put):
    """Its loss would tell a label histogram, and a private image from a hundred such models."""

    def as_an_evaluation(content):
        a_model_of_the_servers_own(content)
        edit(content, model_round=0, round=ROUND)

    reply = put(as_an_evaluation, "evaluate", forget=True)
    assert_refused(reply, "DowngradeError", "expected a trained model to evaluate")
    reply = put(lambda content: None, "train", 1, app=make_app(), forget=True)
    assert reply.has_content()  # the same initial model as before is trained
    other = put(initial(0.5), "train", 1, forget=True)
    assert_refused(other, "DowngradeError", "a run has one initial model")


def test_a03_a_map_of_another_initial_model_is_refused(put):
    reply = put(initial(0.5), "query.fedsens_sensitivity", 1)
    assert_refused(reply, "DowngradeError", "that this run began with")


def test_a03_the_owner_pins_the_initial_model(put):
    pinned = sorted_digest(arrays_of(initial_arrays()))
    honest = lambda content: None  # noqa: E731
    own = {"app": make_app(), "forget": True}
    reply = put(honest, "train", 1, initial_sha256="ab" * 32, **own)
    assert_refused(reply, "DowngradeError", "of fedsens-initial-sha256")
    assert put(honest, "train", 1, initial_sha256=pinned, **own).has_content()


def test_a09_a_remainder_without_a_budget_is_refused_where_the_owner_sets_one(put):
    reply = put(lambda content: None, max_epsilon=8)
    assert_refused(reply, "DowngradeError", "whose privacy loss can be stated")


def test_a07_a_pinned_roster_demands_encryption(put, tmp_path):
    """Of a client that holds no key yet, as in the first message of a run."""

    def in_plaintext(content):
        mask = EncryptionMask.from_bytes(bytes_of(content, MASK))
        empty = EncryptionMask(np.zeros(mask.size, bool), mask.layout_digest)
        content[MASK] = bytes_to_record(empty.to_bytes())
        edit(content, mask=empty.digest, model_mask=empty.digest, fingerprint="", cohort=[])

    own = {"state_dir": str(tmp_path / "new"), "number": 1}
    roster = tmp_path / "roster.json"
    roster.write_text(json.dumps(["ab" * 32]))
    roster.chmod(0o600)
    assert put(in_plaintext, app=make_app(), **own).has_content()
    reply = put(in_plaintext, roster_file=str(roster), **own)
    assert_refused(reply, "DowngradeError", "pins a roster")

    def noise_of_nothing(content):
        in_plaintext(content)
        edit(content, dp={"clip": 1.0, "noise": 1.0, "shares": 2})

    assert_refused(
        put(noise_of_nothing, app=make_app(), **own), "DowngradeError", "every parameter"
    )
    for limit in ({"min_dp_noise": 1.0}, {"max_epsilon": 2.0}):
        reply = put(noise_of_nothing, **limit, **own)
        assert_refused(reply, "DowngradeError", "limits what its answers tell")
