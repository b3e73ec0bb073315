"""One-time keys through the real strategy, mod and grid: what opens, and what a client gives."""

import base64
import copy
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, product
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedsens import Aggregator, Decryptor, FedSensConfig, OneTimeSecret, crypto
from fedsens.crypto import MAP_PARAMETERS
from fedsens.errors import KeyMismatchError, PhaseError, StrategyError, ValueRangeError
from fedsens.flower import LocalGrid, SelectiveEncryption
from fedsens.flower._client import Client
from fedsens.flower._records import CIPHERTEXT, HEADER, KEY_ANSWER, MAP
from fedsens.keys import _pads
from fedsens.keys._pads import uint16s
from fedsens.protocol import Contributors, ModelHeader, Party, RoundContext
from fedsens.remainder import CentralPrivacy

from .federation import (
    Recorder,
    Run,
    arrays_of,
    initial_arrays,
    is_reply,
    is_request,
    largest_difference,
    make_app,
    rounding,
    run_plain,
    state_dir,
    train,
)

NODES, VICTIM = (1000, 1001, 1002, 1003), 1000
HONEST, CORRUPT = (1000, 1001), (1002, 1003)
KEY_SUM_QUERY, MAPS_QUERY = "query.fedsens_key_sum", "query.fedsens_sensitivity"
LARGEST = 21  # magnitude of a secret's coefficients
SUMS = (("map", 1), ("update", 1), ("update", 2))


def bytes_of(content, name):
    return b"".join(array.data for array in content[name].values())


def header_of(content):
    return json.loads(content[HEADER]["json"])


def edit(content, **fields):
    content[HEADER] = ConfigRecord({"json": json.dumps({**header_of(content), **fields})})


class Noting(crypto.Encryptor):
    """Keeps the secrets that it encrypts under, which the real one hands out and forgets."""

    drawn: ClassVar[list[np.ndarray]] = []

    def encrypt(self, *arguments):
        data, secret = super().encrypt(*arguments)
        self.drawn.append(secret.to_array())
        return data, secret


@pytest.fixture
def drawn(monkeypatch):
    monkeypatch.setattr(Noting, "drawn", [])
    monkeypatch.setattr(crypto, "Encryptor", Noting)
    return Noting.drawn


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """All that passes the server in two rounds, and the clients' folders."""
    folder = tmp_path_factory.mktemp("state")
    before = tmp_path_factory.mktemp("before") / "state"
    seen = SimpleNamespace(uploads={}, answers={}, lists={}, requests={}, cohort=())
    last = {}

    def keep(message):
        metadata, content = message.metadata, message.content
        node = metadata.src_node_id
        if is_reply(message):
            number = 1 + sum(key[::2] == ("update", node) for key in seen.uploads)
            seen.uploads["update", number, node] = bytes_of(content, CIPHERTEXT)
        elif is_reply(message, MAPS_QUERY):
            seen.uploads["map", 1, node] = bytes_of(content, MAP)
        elif is_reply(message, KEY_SUM_QUERY):
            seen.answers[(*last["list"], node)] = np.frombuffer(
                bytes_of(content, KEY_ANSWER), "<u2"
            )
        elif is_request(message, KEY_SUM_QUERY):
            header = header_of(content)
            last["list"] = header["kind"], header["round"]
            seen.lists[last["list"]] = header
            if (*last["list"], metadata.dst_node_id) == ("update", 2, VICTIM):
                shutil.copytree(folder, before)
                seen.requests["keys"] = copy.deepcopy(message)
        elif is_request(message):
            seen.cohort = ModelHeader.from_json(content[HEADER]["json"]).cohort
            if metadata.dst_node_id == VICTIM:
                seen.requests["train"] = copy.deepcopy(message)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSENS_STATE_DIR", str(folder))
        seen.run = Run(grid=LocalGrid(make_app(), 4, tap=keep), rounds=2, ratio=0.5)
        seen.stores = {node: Client(seen.run.grid.nodes[node]).store for node in NODES}
        for store in seen.stores.values():  # read while the folder is the right one
            assert store.identity
            assert store.run_identity
        seen.key, seen.before = seen.run.key, before
    return seen


# What a server knows that works together with all clients but two.


class Adversary:
    """Holds K, the folders of all but two clients, and every message."""

    def __init__(self, stage):
        self.stage = stage
        self.run_keys = {party.name: party.run_key for party in stage.cohort}

    def digest(self, which):
        header = self.stage.lists[which]
        contributors = Contributors.model_validate(header["contributors"])
        return contributors.digest(bytes.fromhex(header["context"]))

    def stripped(self, which, node):
        """A key answer without the pads that the adversary can compute."""
        digest, store = self.digest(which), self.stage.stores[node]
        name = bytes.fromhex(store.name)
        answer = self.stage.answers[(*which, node)] - _pads._key_pad(self.stage.key, digest, name)
        for other in CORRUPT:
            mine = self.stage.stores[other]
            party = Party(name=store.name, run_key=self.run_keys[store.name])
            seed = _pads._pair_seed((mine.identity, mine.run_identity), party, digest)
            pad = uint16s(seed, _pads.COEFFICIENTS)
            answer = answer - pad if store.name < mine.name else answer + pad
        return answer

    def decrypt(self, which, nodes, coefficients):
        parameters = self.parameters(which)
        data = Aggregator(parameters).sum([self.stage.uploads[(*which, node)] for node in nodes])
        context = bytes.fromhex(self.stage.lists[which]["context"])
        secret = OneTimeSecret.from_array(coefficients, len(nodes))
        return Decryptor(parameters, context).decrypt(data, secret)

    def parameters(self, which):
        ours = self.stage.run.strategy.config.parameters
        return MAP_PARAMETERS if which[0] == "map" else ours


def signed(words):
    return words.astype(np.uint16).view(np.int16).astype(np.int64)


def test_every_combination_of_key_answers_shows_sums_over_both_honest_clients_only(stage):
    """An integer combination is small, as secrets are, if it treats both alike in each sum.

    All others are masked by the pad that the two share, which nobody else knows.
    """
    adversary = Adversary(stage)
    pieces = [(which, node) for which in SUMS for node in HONEST]
    answers = np.stack([adversary.stripped(*piece) for piece in pieces]).astype(np.int64)
    for factors in product((-1, 0, 1), repeat=len(pieces)):
        small = np.abs(signed(np.asarray(factors) @ answers)).max() <= LARGEST * len(pieces)
        alike = all(factors[i] == factors[i + 1] for i in range(0, len(pieces), 2))
        assert small == alike


@pytest.mark.parametrize("which", SUMS, ids=str)
def test_the_adversary_opens_the_sum_of_the_honest_clients_and_no_single_one(stage, which):
    adversary = Adversary(stage)
    both = signed(sum(adversary.stripped(which, node) for node in HONEST))
    opened = adversary.decrypt(which, HONEST, both)  # the control: this is what is claimed
    assert np.isfinite(opened).all()
    for node in HONEST:
        alone = signed(adversary.stripped(which, node))
        with pytest.raises(KeyMismatchError):  # 4096 uniform numbers are no secret
            adversary.decrypt(which, [node], alone)
        with pytest.raises(ValueRangeError):  # nor does the sum's secret open a summand
            adversary.decrypt(which, [node] * 2, both)


def test_the_secret_of_one_sum_opens_no_other(stage):
    """Neither of another round nor of maps for updates."""
    adversary = Adversary(stage)
    for one, other in combinations(SUMS, 2):
        for uploads, keys in ((one, other), (other, one)):
            both = signed(sum(adversary.stripped(keys, node) for node in HONEST))
            with pytest.raises(ValueRangeError):
                adversary.decrypt(uploads, HONEST, both)


def test_the_sum_of_all_answers_is_small_under_the_key_only(stage):
    """Without K the server has uniform numbers, whatever it adds."""
    answers = [stage.answers["update", 2, node] for node in NODES]
    for count in (1, 2, 3, 4):
        for some in combinations(answers, count):
            assert np.abs(signed(sum(some))).max() > 1000 * LARGEST


# What one client answers to a list.


@pytest.fixture
def ask(stage, tmp_path):
    """Put a list, changed by the test, to a client that has not given its key yet."""
    shutil.copytree(stage.before, tmp_path / "copy")

    def put(change=lambda content: None, kind="keys", app=None, **settings):
        message = copy.deepcopy(stage.requests[kind])
        change(message.content)
        node_config = {"partition-id": 0, "num-partitions": 4}
        node_config["fedsens-state-dir"] = str(tmp_path / "copy")
        node_config |= {f"fedsens-{k.replace('_', '-')}": v for k, v in settings.items()}
        return (app or make_app())(message, Context(1, VICTIM, node_config, RecordDict(), {}))

    return put


@pytest.fixture
def lists(stage):
    """Changes of the list of contributors."""
    mine = stage.stores[VICTIM].name

    def members(change):
        def apply(content):
            listed = header_of(content)["contributors"]["members"]
            changed = sorted(change(listed), key=lambda each: each["name"])
            edit(content, contributors={"members": changed})

        return apply

    def own(**fields):
        return members(lambda all_: [{**m, **fields} if m["name"] == mine else m for m in all_])

    others = lambda all_: [m for m in all_ if m["name"] != mine]  # noqa: E731
    me = lambda all_: [m for m in all_ if m["name"] == mine]  # noqa: E731
    return {
        "without itself": members(others),
        "with another weight of its own": own(weight=0.5),
        "with another nonce of its own": own(nonce="ab" * 16),
        "with itself under another name": own(name="ab" * 32),
        "with a stranger": members(lambda all_: [*all_, {**all_[0], "name": "ab" * 32}]),
        "with a stranger for another": members(
            lambda all_: [*me(all_), {**all_[0], "name": "ab" * 32}]
        ),
        "without another": members(lambda all_: [*me(all_), *others(all_)[1:]]),
        "with one other": members(lambda all_: [*me(all_), *others(all_)[:1]]),
        "with another's other weight": members(
            lambda all_: [*me(all_), {**others(all_)[0], "weight": 0.5}, *others(all_)[1:]]
        ),
        "with another's other nonce": members(
            lambda all_: [*me(all_), {**others(all_)[0], "nonce": "ab" * 16}, *others(all_)[1:]]
        ),
        "alone": members(me),
        "twice": members(lambda all_: [*me(all_), *all_]),
        "out of order": lambda content: edit(
            content,
            contributors={"members": header_of(content)["contributors"]["members"][::-1]},
        ),
        "of another context": lambda content: edit(content, context="ab" * 32),
        "of the round before": lambda content: edit(content, round=1),
        "of a round to come": lambda content: edit(content, round=3),
        "of maps": lambda content: edit(content, kind="map", round=1),
        "of maps of this round": lambda content: edit(content, kind="map"),
        "the list of the round before": lambda content: edit(content, **stage.lists["update", 1]),
        "that of the round before for this one": lambda content: edit(
            content, contributors=stage.lists["update", 1]["contributors"]
        ),
    }


WRONG = {  # and whether the client has bound itself to that list all the same
    "without itself": ("ProtocolError", True),
    "with another weight of its own": ("ProtocolError", True),
    "with another nonce of its own": ("ProtocolError", True),
    "with itself under another name": ("ProtocolError", True),
    "with a stranger": ("ProtocolError", True),
    "with a stranger for another": ("ProtocolError", True),
    "alone": ("ContributorsError", False),
    "twice": ("ContributorsError", False),
    "out of order": ("ContributorsError", False),
    "of another context": ("ProtocolError", True),
    "of the round before": ("RoundError", False),
    "of a round to come": ("RoundError", False),
    "of maps": ("ListError|RoundError|ProtocolError", False),
    "of maps of this round": ("RoundError", False),
    "the list of the round before": ("RoundError", False),
    "that of the round before for this one": ("ProtocolError", True),
}
OTHER = [  # lists that could be honest
    "without another",
    "with one other",
    "with another's other weight",
    "with another's other nonce",
]


def error_of(reply):
    assert not reply.has_content()
    return reply.error.reason.split(":")[0]


def test_the_same_list_gets_the_same_answer_again_and_again(ask, stage):
    answers = [bytes_of(ask().content, KEY_ANSWER) for _ in range(3)]
    assert answers == [stage.answers["update", 2, VICTIM].tobytes()] * 3


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_list_gets_no_key(ask, lists, name):
    error, bound = WRONG[name]
    assert error_of(ask(lists[name])) in error.split("|")
    if bound:
        assert error_of(ask()) == "ListError"
    else:
        assert ask().has_content()
    assert not ask(lists[name]).has_content()


@pytest.mark.parametrize("first", OTHER)
def test_of_two_lists_that_could_be_honest_only_the_first_is_answered(ask, lists, stage, first):
    answer = bytes_of(ask(lists[first]).content, KEY_ANSWER)
    assert error_of(ask()) == "ListError"
    for other in OTHER:
        if other != first:
            assert error_of(ask(lists[other])) == "ListError"
    assert bytes_of(ask(lists[first]).content, KEY_ANSWER) == answer
    # Its pads are for that list alone: the others' answers to the right one do not cancel them.
    rest = [stage.answers["update", 2, node] for node in NODES if node != VICTIM]
    for count in range(len(rest) + 1):
        for some in combinations(rest, count):
            total = sum(some, np.frombuffer(answer, "<u2"))
            header = stage.lists["update", 2]
            digest = Contributors.model_validate(header["contributors"]).digest(
                bytes.fromhex(header["context"])
            )
            for node in NODES:
                name = bytes.fromhex(stage.stores[node].name)
                total = total - _pads._key_pad(stage.key, digest, name)
            assert np.abs(signed(total)).max() > 1000 * LARGEST


@pytest.mark.parametrize("other", OTHER)
def test_after_the_answer_no_other_list_is_answered(ask, lists, other):
    assert ask().has_content()
    assert error_of(ask(lists[other])) == "ListError"
    assert ask().has_content()


def test_a_list_of_fewer_than_the_client_demands(ask, lists):
    assert error_of(ask(lists["without another"], min_contributors=4)) == "ContributorsError"
    assert error_of(ask(min_contributors=5)) == "ContributorsError"
    assert ask(min_contributors=4).has_content()


def test_a_list_whose_members_are_not_of_the_pinned_roster(ask, stage, tmp_path):
    names = [store.name for store in stage.stores.values()]
    identity = tmp_path / "copy" / "run-1" / f"node-{VICTIM}" / "identity"
    roster = tmp_path / "roster"
    pinned = {"identity_file": str(identity), "roster_file": str(roster), "min_contributors": 3}
    roster.write_text(json.dumps(names[:2]))
    assert error_of(ask(**pinned)) == "ContributorsError"
    roster.write_text(json.dumps(names[:3]))
    assert ask(**pinned).has_content()


def test_two_threads_with_two_lists_get_one_answer(ask, lists):
    changes = [lists[name] for name in OTHER] + [lambda content: None]
    with ThreadPoolExecutor(len(changes)) as pool:
        replies = list(pool.map(ask, changes * 3))
    answers = {bytes_of(r.content, KEY_ANSWER) for r in replies if r.has_content()}
    assert len(answers) == 1
    assert sum(reply.has_content() for reply in replies) == 3  # the same list each time


def test_the_secret_is_gone_from_the_disk_once_it_was_given(ask, stage, tmp_path):
    folder = tmp_path / "copy" / "run-1" / f"node-{VICTIM}"
    secret = json.loads((folder / "update-2.secret").read_bytes().split(b"\n", 1)[1])["secret"]
    assert holding(folder, base64.b64decode(secret)) == ["update-2.secret"]
    assert ask().has_content()
    assert holding(folder, base64.b64decode(secret)) == []
    assert not any((folder / "update-2.secret").read_bytes())


def holding(folder, secret):
    """Files that hold some bytes, plain or in base64."""
    forms = secret, base64.b64encode(secret)
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(p.name for p in files if any(form in p.read_bytes() for form in forms))


# One upload for each round.


def test_a_repeated_training_request_is_refused_by_a_new_process_too(stage, ask):
    """Every message makes new objects over the same folder, as Flower starts a new process."""

    def never(message, context):
        pytest.fail("trained")

    for change in (
        lambda content: None,
        lambda content: content["config"].update({"lr": 1.0}),
        lambda content: edit(content, reference=91.0),
        lambda content: edit(content, weighted_by="rows"),
    ):
        assert error_of(ask(change, "train", make_app(never))) == "RoundError"


def test_of_many_training_requests_at_once_one_is_answered(stage, tmp_path):
    before = tmp_path / "threads"
    shutil.copytree(stage.before, before)
    for path in (before / "run-1" / f"node-{VICTIM}").glob("update-*"):
        path.unlink()  # as if the round was new to it

    def put(number):
        message = copy.deepcopy(stage.requests["train"])
        message.content["config"]["lr"] = float(number)
        settings = {"partition-id": 0, "fedsens-state-dir": str(before)}
        return make_app()(message, Context(1, VICTIM, settings, RecordDict(), {}))

    with ThreadPoolExecutor(6) as pool:
        replies = list(pool.map(put, range(6)))
    assert sum(reply.has_content() for reply in replies) == 1
    assert {error_of(r) for r in replies if r.has_error()} == {"RoundError"}


def test_secrets_are_never_used_twice_and_none_stays_on_the_disk(drawn):
    run = Run(rounds=4, ratio=0.5, refresh_every=2)
    assert len(drawn) == 3 * (4 + 2)
    assert len({secret.tobytes() for secret in drawn}) == len(drawn)
    for one, other in combinations(drawn, 2):
        assert (one == other).mean() < 0.3  # independent draws agree in about a tenth
    for secret in drawn:
        assert np.abs(secret).max() <= LARGEST
        assert holding(state_dir(), secret.astype("<i2").tobytes()) == []
        assert holding(state_dir(), secret.astype("<i8").tobytes()) == []
    assert run.reports("train")[-1].clients == 3


# Lost uploads and lost keys.


def rounds_of(messages_of, node, number, change):
    """A tap that changes the message of its kind with this number at one node."""
    count = []

    def meddle(message):
        if messages_of(message) and message.metadata.src_node_id == node:
            count.append(node)
            if len(count) == number:
                change(message)

    return meddle


def lose(message):
    message.__dict__.update(_content=None, _error=Error(5, "Node Unavailable"))


def test_a_lost_upload_costs_nothing(recorder, drawn, caplog):
    """The others' keys are asked for the others' list; the lost secret goes with the next round."""
    grid = LocalGrid(make_app(recorder), 3, tap=rounds_of(is_reply, 1001, 2, lose))
    run = Run(grid=grid, rounds=3, ratio=0.5, policy="random")
    assert [(r.clients, r.lost) for r in run.reports("train")] == [(3, 0), (2, 1), (3, 0)]
    for number, nodes in ((1, [1000, 1001, 1002]), (2, [1000, 1002]), (3, [1000, 1001, 1002])):
        gap = largest_difference(run.models[number], recorder.mean(number, nodes))
        assert gap <= 2 * run.strategy.config.parameters.error_bound(3) + rounding(run.models[1])
    assert "changes nothing" not in caplog.text
    for secret in drawn:
        assert holding(state_dir(), secret.astype("<i2").tobytes()) == []


def is_key_answer(message):
    return is_reply(message, KEY_SUM_QUERY)


def test_a_key_that_is_lost_once_is_asked_for_again(recorder):
    grid = LocalGrid(make_app(recorder), 3, tap=rounds_of(is_key_answer, 1001, 2, lose))
    run = Run(grid=grid, rounds=3, ratio=0.5, policy="random")
    assert [(r.clients, r.lost) for r in run.reports("train")] == [(3, 0)] * 3


class Keyless(LocalGrid):
    """One node gives no key in one round, in one of many ways."""

    def __init__(self, app, give, number=2):
        super().__init__(app, 3)
        self._give, self._number = give, number

    def answer(self, message):
        metadata = message.metadata
        asked = (metadata.message_type, metadata.dst_node_id) == (KEY_SUM_QUERY, 1001)
        spoilt = asked and header_of(message.content)["round"] == self._number
        reply = super().answer(message)
        if spoilt:
            self._give(reply)
        return reply


NO_KEY = {
    "lost": lose,
    "an empty answer": lambda reply: reply.content.clear(),
    "a refusal": lambda reply: reply.__dict__.update(
        _content=None, _error=Error(6, "ProtocolError: expected another list")
    ),
    "another record": lambda reply: reply.content.update({
        KEY_ANSWER: ConfigRecord({"key": b"1" * 8192})
    }),
    "a short key": lambda reply: reply.content[KEY_ANSWER].pop("000000"),
}


@pytest.mark.parametrize("give", NO_KEY.values(), ids=NO_KEY)
def test_a_key_that_does_not_come_voids_the_round_by_name(recorder, give, caplog):
    """The model stays, the client is left out of the next cohort, and the run goes on."""
    run = Run(grid=Keyless(make_app(recorder), give), rounds=4, ratio=0.5, policy="random")
    assert "round 2 changes nothing: expected the keys of all 3 clients" in caplog.text
    assert "got none from node 1001; the sum cannot be opened and is dropped" in caplog.text
    assert "node 1001 left out of this round: no key came of it" in caplog.text
    trained = [sorted(recorder.trained[number]) for number in (1, 2, 3, 4)]
    assert trained == [[1000, 1001, 1002], [1000, 1001, 1002], [1000, 1002], [1000, 1001, 1002]]
    assert largest_difference(run.models[2], run.models[1]) == 0
    bound = 2 * run.strategy.config.parameters.error_bound(3) + rounding(run.models[1])
    for number in (1, 3, 4):
        assert largest_difference(run.models[number], recorder.mean(number)) <= bound


def test_a_key_that_does_not_come_in_the_first_round_ends_no_run(recorder):
    """Not even where another client failed in the same round."""

    def fail_once(message, context):
        if context.node_id == 1002 and message.content["config"]["server-round"] == 1:
            raise RuntimeError
        return recorder(message, context)

    grid = Keyless(make_app(fail_once), lose, number=1)
    run = Run(grid=grid, rounds=3, ratio=0.5, policy="random")
    assert [r.clients for r in run.reports("train")] == [0, 2, 3]


@pytest.mark.parametrize("give", NO_KEY.values(), ids=NO_KEY)
def test_a_key_of_a_first_map_that_does_not_come_voids_the_round_by_name(recorder, give, caplog):
    """Nobody is asked for anything in plaintext, and the next round asks the others for maps."""
    sent = []
    grid = Keyless(make_app(recorder), give, number=1)
    grid.tap = lambda message: sent.append(message.metadata.message_type)
    run = Run(grid=grid, rounds=3, ratio=0.5, policy="sensitivity")
    assert "round 1 changes nothing: it has no mask: expected the keys of all 3" in caplog.text
    assert "got none from node 1001" in caplog.text
    maps = [(r.round, r.clients) for r in run.reports("map")]
    assert maps == [(2, 2)]
    assert {number: sorted(nodes) for number, nodes in recorder.trained.items()} == {
        2: [1000, 1002],
        3: [1000, 1001, 1002],
    }
    assert [(r.round, r.clients) for r in run.reports("train")] == [(1, 0), (2, 2), (3, 3)]
    assert [r.round for r in run.reports("evaluate")] == [2, 3]
    bound = 2 * run.strategy.config.parameters.error_bound(3) + rounding(run.models[2])
    for number in (2, 3):
        assert largest_difference(run.models[number], recorder.mean(number)) <= bound


def test_a_key_of_a_later_map_that_does_not_come_leaves_the_mask(recorder, caplog):
    grid = Keyless(make_app(recorder), lose, number=2)
    run = Run(grid=grid, rounds=4, ratio=0.5, policy="sensitivity", refresh_every=1)
    assert "the mask of the earlier rounds stays in use: expected the keys of all 3" in caplog.text
    assert [(r.round, r.clients) for r in run.reports("map")] == [(1, 3), (3, 2), (4, 3)]
    assert [sorted(recorder.trained[n]) for n in (2, 3)] == [[1000, 1002]] * 2


def test_a_run_whose_only_round_is_void_is_a_failure(recorder):
    grid = Keyless(make_app(recorder), lose, number=1)
    with pytest.raises(PhaseError, match="expected a round that changed the model, got none"):
        Run(grid=grid, rounds=1, ratio=0.5, policy="sensitivity")


def test_no_second_list_is_asked_for_after_a_key_was_lost():
    asked = []

    def look(message):
        if is_request(message, KEY_SUM_QUERY):
            header = header_of(message.content)
            asked.append((header["round"], json.dumps(header["contributors"])))

    grid = Keyless(make_app(), lose)
    grid._tap = look
    Run(grid=grid, rounds=3, ratio=0.5, policy="random")
    for number in (1, 2, 3):
        assert len({listed for each, listed in asked if each == number}) == 1


# Clients that are told different things.


class OneByOne(FedAvg):
    """Gives every client a configuration of its own."""

    def configure_train(self, server_round, arrays, config, grid):
        for message in super().configure_train(server_round, arrays, config, grid):
            content = copy.deepcopy(message.content)
            content["config"]["node"] = message.metadata.dst_node_id
            yield Message(content, dst_node_id=message.metadata.dst_node_id, message_type="train")


def test_a_strategy_that_tells_clients_different_things_is_refused():
    strategy = SelectiveEncryption(OneByOne(), FedSensConfig(ratio=0.5, policy="random"))
    with pytest.raises(StrategyError, match="one content for all clients of a round"):
        strategy.start(LocalGrid(make_app(), 3), initial_arrays(), 1)


def tell_other_model(content):
    arrays = {name: array.numpy().copy() for name, array in content["arrays"].items()}
    arrays["0.bias"] = arrays["0.bias"] + np.float32(1)
    content["arrays"] = ArrayRecord({name: Array(np.asarray(a)) for name, a in arrays.items()})


OTHERWISE = {
    "another configuration": lambda content: content["config"].update({"lr": 2.0}),
    "another model": tell_other_model,
    "another reference": lambda content: edit(content, reference=91.0),
    "one more record": lambda content: content.update({"extra": ConfigRecord()}),
}


@pytest.mark.parametrize("change", OTHERWISE.values(), ids=OTHERWISE)
def test_an_upload_of_a_client_that_was_told_something_else_is_left_out(change, recorder, caplog):
    def meddle(message):
        if is_request(message) and message.metadata.dst_node_id == 1001:
            change(message.content)

    run = Run(
        grid=LocalGrid(make_app(recorder), 3, tap=meddle), rounds=1, ratio=0.5, policy="random"
    )
    assert "left out the update of node 1001: expected an upload that is bound to" in caplog.text
    assert run.reports("train")[0].clients == 2


@pytest.mark.parametrize("change", ["strangers", "without it", "another run key", "twice"])
def test_a_cohort_without_this_client_as_it_is_gets_no_upload(ask, stage, tmp_path, change):
    for path in (tmp_path / "copy" / "run-1" / f"node-{VICTIM}").glob("update-*"):
        path.unlink()

    def never(message, context):
        pytest.fail("trained")

    mine = stage.stores[VICTIM].name

    def meddle(content):
        cohort = header_of(content)["cohort"]
        me = next(each for each in cohort if each["name"] == mine)
        others = [each for each in cohort if each["name"] != mine]
        changed = {
            "strangers": [],
            "without it": others,
            "another run key": [*others, {**me, "run_key": "ab" * 32}],
            "twice": [*cohort, {**me, "run_key": "ab" * 32}],
        }
        edit(content, cohort=changed[change])

    assert error_of(ask(meddle, "train", make_app(never))) == "ProtocolError"
    assert ask(kind="train").has_content()


def test_a_context_differs_in_everything_that_a_client_is_told(stage):
    header = ModelHeader.from_json(stage.requests["train"].content[HEADER]["json"])
    context = header.context("update", "1", "ab" * 32)
    others = {
        "kind": "map",
        "run": "2",
        "round": 9,
        "fingerprint": "cd" * 16,
        "parameters": MAP_PARAMETERS,
        "layout": "cd" * 32,
        "model_mask": "cd" * 32,
        "mask": "cd" * 32,
        "base": "cd" * 32,
        "reference": np.nextafter(context.reference, 0),
        "weighted_by": "rows",
        "remainder": context.remainder.model_copy(update={"scale": 2.0}),
        "opens": "server",
        "cohort": "cd" * 32,
        "dp": CentralPrivacy(clip=1.0, noise=1.0, shares=2),
    }
    assert set(others) == set(RoundContext.model_fields) - {"version"}
    digests = {context.model_copy(update={k: v}).digest for k, v in others.items()}
    assert len(digests | {context.digest}) == 1 + len(others)


# What remains of the plain strategy.


def test_ratio_0_is_the_inner_strategy_bit_for_bit():
    expected = run_plain(rounds=10)
    run = Run(rounds=10, ratio=0)
    assert run.result.arrays.object_id == expected.arrays.object_id
    assert dict(run.result.train_metrics_clientapp) == dict(expected.train_metrics_clientapp)
    assert dict(run.result.evaluate_metrics_clientapp) == dict(expected.evaluate_metrics_clientapp)


def test_ratio_1_equals_fedavg_within_the_bound_over_ten_rounds():
    recorder = Recorder(train)
    run = Run(app=make_app(recorder), rounds=10, ratio=1.0)
    bound = run.strategy.config.parameters.error_bound(3) + rounding(run.models[1])
    for number in range(1, 11):
        assert largest_difference(run.models[number], recorder.mean(number)) <= bound
    expected = arrays_of(run_plain(rounds=10).arrays)
    counts = "1.num_batches_tracked"  # which FedAvg's own mean cuts
    both = [{n: a for n, a in m.items() if n != counts} for m in (run.models[10], expected)]
    assert largest_difference(*both) <= 50 * bound  # ten rounds of training in between


def test_the_servers_process_loads_neither_seal_nor_what_clients_keep():
    code = """
import sys
from fedsens.flower import SelectiveEncryption
import server.app
print(sorted(name for name in sys.modules if name.split(".")[0] in ("tenseal", "seal")
             or name.startswith("fedsens.keys") or name.startswith("fedsens.flower._client")))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"
