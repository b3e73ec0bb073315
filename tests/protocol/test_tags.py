"""An aggregate opens only as what it was added from; a server that lacks the key cannot lie."""

import json
import math
from itertools import product

import numpy as np
import pytest
import tenseal.sealapi as sealapi
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsens import Aggregator, CkksParameters, Encryptor, generate_key
from fedsens.crypto.aggregator import load_blocks
from fedsens.crypto.packing import pack
from fedsens.crypto.residues import form_of
from fedsens.crypto.seal import seal_context, seal_file
from fedsens.crypto.wire import SUM, Batch, parse_batch
from fedsens.errors import ContributorsError, ModelError, ValueRangeError
from fedsens.protocol.contributors import LEAST_BITS, Contributors
from fedsens.protocol.tagged import (
    check_mean,
    check_values,
    decrypt_tagged,
    encrypt_tagged,
)
from fedsens.protocol.tags import TAGS, Scope, capacity, forgery_bits, tagged, weave

PARAMETERS = CkksParameters.preset("compact")
KEY = generate_key(PARAMETERS)
SCOPE = Scope("update", "1", 3, "ab" * 32, "cd" * 32, 90.0)
NAMES = ("1000", "1001", "1002")
COUNT = 6000  # two blocks, the second one not full


def listed(weights, names=NAMES, **changes):
    fields = {"run": "1", "reference": 90.0, "names": names, "weights": tuple(weights), **changes}
    return Contributors(**fields)


def values_of(name, count=COUNT):
    rng = np.random.default_rng(int(name))
    return rng.normal(scale=0.1, size=count).astype(np.float32)


def sealed(name, weight, scope=SCOPE, count=COUNT, key=KEY):
    return encrypt_tagged(values_of(name, count), weight, key, scope, name)


def added(batches):
    return Aggregator(PARAMETERS).sum(list(batches))


def opened(data, contributors, scope=SCOPE, count=COUNT, weight=None, **limits):
    weight = contributors.weight if weight is None else weight
    return decrypt_tagged(data, count, weight, KEY, scope, contributors, **limits)


WEIGHTS = (0.2, 0.3, 0.5)


@pytest.fixture(scope="module")
def fresh():
    return {name: sealed(name, weight) for name, weight in zip(NAMES, WEIGHTS, strict=True)}


@pytest.mark.parametrize("count", [1, 4091, 4092, 4093, 8184, 8185])
def test_the_values_come_back(count):
    batch = sealed("1000", 0.5, count=count)
    assert parse_batch(batch, PARAMETERS).values == tagged(count, PARAMETERS)
    mean = opened(batch, listed([0.5], ("1000",)), count=count, least=1)
    assert np.abs(mean - values_of("1000", count)).max() <= PARAMETERS.error_bound() / 0.5


def test_tags_differ_by_block_and_contributor_and_show_no_value():
    ones = np.ones(COUNT)
    woven = [weave(ones, KEY, SCOPE, name) for name in NAMES]
    tags = np.array([w[start : start + TAGS] for w in woven for start in (0, 4096)])
    assert len(np.unique(tags)) == tags.size
    assert np.abs(tags).max() <= 4 * 4 + 7
    assert np.array_equal(woven[0][TAGS:4096], np.ones(capacity(PARAMETERS)))


@given(
    weights=st.lists(st.floats(0.01, 0.2), min_size=1, max_size=5),
    preset=st.sampled_from(["compact", "balanced", "precise"]),
    count=st.integers(1, 9000),
)
@settings(max_examples=25, deadline=None)
def test_the_honest_sum_is_the_weighted_mean(weights, preset, count):
    parameters = CkksParameters.preset(preset)
    key = generate_key(parameters)
    names = [str(1000 + i) for i in range(len(weights))]
    batches = [sealed(n, w, count=count, key=key) for n, w in zip(names, weights, strict=True)]
    who = listed(weights, tuple(names))
    data = Aggregator(parameters).sum(batches)
    mean = decrypt_tagged(data, count, who.weight, key, SCOPE, who, least=len(names))
    expected = sum(
        w * values_of(n, count).astype(float) for n, w in zip(names, weights, strict=True)
    )
    bound = parameters.error_bound(len(names)) / who.weight
    assert np.abs(mean - expected / who.weight).max() <= bound + 1e-12


@pytest.mark.parametrize(
    "times", [t for t in product(range(4), repeat=3) if any(t) and t != (1, 1, 1)]
)
def test_no_other_combination_of_the_same_ciphertexts_opens(times, fresh):
    batches = [fresh[name] for name, n in zip(NAMES, times, strict=True) for _ in range(n)]
    data = added(batches)
    lies = [listed(WEIGHTS)]
    # The truth about the numbers would be no lie: every contributor once, with a larger weight.
    # Everything else the server could say is one: fewer names, more names, other weights.
    for claimed in product((0, 1, 2), repeat=3):
        if any(claimed) and claimed != times:
            chosen = [(n, w * c) for n, w, c in zip(NAMES, WEIGHTS, claimed, strict=True) if c]
            names, weights = zip(*chosen, strict=True)
            lies.append(listed(weights, names))
    for lie in lies:
        with pytest.raises(ContributorsError, match="expected the sum of"):
            opened(data, lie, least=1)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "map"},
        {"kind": "moved"},
        {"run": "2"},
        {"round": 2},
        {"mask": "ef" * 32},
        {"layout": "ef" * 32},
        {"reference": 91.0},
    ],
    ids=str,
)
def test_one_update_of_another_place_spoils_the_sum(change, fresh):
    stray = Scope(**{**vars(SCOPE), **change})
    data = added([fresh["1000"], fresh["1001"], sealed("1002", 0.5, stray)])
    with pytest.raises(ContributorsError, match="in 2 of 2 blocks"):
        opened(data, listed(WEIGHTS))


def test_the_key_is_part_of_the_tags():
    other = generate_key(PARAMETERS)
    mine, theirs = (weave(values_of("1"), key, SCOPE, "1") for key in (KEY, other))
    assert not np.isclose(mine[:TAGS], theirs[:TAGS]).any()


class Server:
    """What a server without a key can do to ciphertexts, beyond adding them."""

    def __init__(self):
        self.context = seal_context(PARAMETERS)
        self.evaluator = sealapi.Evaluator(self.context)
        self.encoder = sealapi.CKKSEncoder(self.context)

    def blocks(self, data):
        return list(load_blocks(parse_batch(data, PARAMETERS), PARAMETERS))

    def batch(self, blocks, like):
        form = form_of(PARAMETERS, False)
        with seal_file() as file:
            pieces = tuple(form.shrink(file.stream(block)) for block in blocks)
        old = parse_batch(like, PARAMETERS)
        return Batch(SUM, old.parameters, old.fingerprint, old.values, 3, pieces).to_bytes()


def test_blocks_in_another_order_do_not_open():
    server = Server()
    count = 2 * capacity(PARAMETERS)
    data = added(sealed(n, w, count=count) for n, w in zip(NAMES, WEIGHTS, strict=True))
    one, two = server.blocks(data)
    assert len(opened(server.batch([one, two], data), listed(WEIGHTS), count=count)) == count
    with pytest.raises(ContributorsError, match="in 2 of 2 blocks"):
        opened(server.batch([two, one], data), listed(WEIGHTS), count=count)


def test_a_block_of_another_round_shows(fresh):
    server = Server()
    data = added(fresh.values())
    old = Scope(**{**vars(SCOPE), "round": 2})
    before = added(sealed(n, w, old) for n, w in zip(NAMES, WEIGHTS, strict=True))
    mixed = server.batch([server.blocks(data)[0], server.blocks(before)[1]], data)
    with pytest.raises(ContributorsError, match="in 1 of 2 blocks"):
        opened(mixed, listed(WEIGHTS))


def test_a_constant_added_by_the_server_shows(fresh):
    """A public polynomial needs no key: added at the value slots it would move the model."""
    server = Server()
    data = added(fresh.values())
    first, second = server.blocks(data)
    slots = np.zeros(4096)
    slots[100] = 0.05  # one weight of thousands
    shift = sealapi.Plaintext()
    server.encoder.encode(pack(slots, PARAMETERS)[0].tolist(), 1.0, shift)
    server.evaluator.add_plain_inplace(first, shift)
    with pytest.raises(ContributorsError, match="in 1 of 2 blocks"):
        opened(server.batch([first, second], data), listed(WEIGHTS))


def test_the_tags_of_an_honest_sum_over_other_values_show(fresh):
    """A multiplier that is 1 at the tags' slots and 0 elsewhere would leave the tags as they are.

    Here whoever forges can do so exactly, which the ring hardly allows: only the hash of the
    values is in the way.
    """
    honest = sum(
        w * weave(values_of(n), KEY, SCOPE, n) for n, w in zip(NAMES, WEIGHTS, strict=True)
    )
    one = weave(values_of("1000"), KEY, SCOPE, "1000")
    forged = one.copy()
    for start in (0, 4096):
        forged[start : start + TAGS] = honest[start : start + TAGS]
    fields = {"weight": 1.0, "least": 1}
    assert len(opened(Encryptor(KEY).encrypt(honest), listed(WEIGHTS), **fields)) == COUNT
    with pytest.raises(ContributorsError, match="in 2 of 2 blocks"):
        opened(Encryptor(KEY).encrypt(forged), listed(WEIGHTS), **fields)


def test_a_list_that_cannot_be_right_is_refused_before_anything_is_opened():
    for who, text in (
        (listed(WEIGHTS, ("1000", "1001", "1000")), "1000 2 times"),
        (listed((0.2, 0.3)), "3 names with 2 weights"),
        (listed((0.2, 0.3, 0.0)), "not positive"),
        (listed((0.2, 0.3, -0.5)), "not positive"),
        (listed(WEIGHTS, moved=True), "do not add up"),
    ):
        with pytest.raises(ContributorsError, match=text):
            who.check(0.99, PARAMETERS)
    with pytest.raises(ContributorsError, match="do not add up"):
        listed(WEIGHTS).check(1.01, PARAMETERS)
    listed(WEIGHTS).check(1.0, PARAMETERS)


@pytest.mark.parametrize(("least", "enough"), [(1, True), (3, True), (4, False)])
def test_the_minimum_holds(least, enough):
    if enough:
        listed(WEIGHTS).check(1.0, PARAMETERS, least)
    else:
        with pytest.raises(ContributorsError, match="at least 4 contributors, got 3"):
            listed(WEIGHTS).check(1.0, PARAMETERS, least)


def test_only_members_of_the_roster_count():
    with pytest.raises(ContributorsError, match=r"of the pinned roster, got 1 \(of 3 named\)"):
        listed(WEIGHTS).check(1.0, PARAMETERS, 2, frozenset({"1000", "7"}))


def test_a_contributor_too_small_to_be_missed_does_not_count():
    """A server could name somebody with a weight below the error and leave it out."""
    alone = sealed("1000", 0.5)
    who = listed((0.5, 1e-9), ("1000", "1001"))
    assert len(opened(alone, who, least=1)) == COUNT  # the tags cannot tell
    with pytest.raises(ContributorsError, match="at least 2 contributors, got 1"):
        opened(alone, who)


@pytest.mark.parametrize("preset", ["compact", "balanced", "precise"])
def test_equal_clients_count_up_to_a_thousand(preset):
    parameters = CkksParameters.preset(preset)
    for clients in (1, 2, 10, 200, 1000):
        bits = forgery_bits(parameters, clients, 1 / clients)
        assert bits >= LEAST_BITS, clients
        chance = 2 * parameters.error_bound(clients) / (4 * parameters.value_range / clients)
        assert math.isclose(bits, -TAGS * math.log2(chance))


def test_guesses_at_a_tag_pass_as_rarely_as_stated():
    """One tag of a made-up share: uniform in [-B, B], so a window passes with its share of it."""
    parameters, window = PARAMETERS, 0.5
    tags = np.concatenate([
        weave(np.zeros(1), KEY, Scope("update", "1", n, "", "", 1.0), "1")[:TAGS]
        for n in range(1, 1001)
    ])
    share = np.mean(np.abs(tags) <= window)
    expected = window / (4 * parameters.value_range)
    assert abs(share - expected) <= 5 * math.sqrt(expected / tags.size)
    assert np.abs(tags).max() <= 4 * parameters.value_range


def test_a_list_survives_its_json_and_names_itself():
    who = listed(WEIGHTS)
    assert Contributors.model_validate_json(who.model_dump_json()) == who
    moved = who.after_move()
    assert (moved.weight, moved.summands) == (1.0, {who.digest: 1.0})
    assert listed((0.2, 0.3, 0.6)).digest != who.digest == moved.digest
    assert json.loads(who.model_dump_json())["reference"] == 90.0


def test_values_and_means_beyond_the_range_are_refused():
    block = np.full(capacity(PARAMETERS), 3.99)
    check_values(block, PARAMETERS)
    check_mean(block, PARAMETERS, 3, 0.5)
    with pytest.raises(ValueRangeError, match="tensor 4092"):
        check_values(np.append(block, 1e3), PARAMETERS, "tensor {}".format)
    for spoiled in (np.append(block, 1e3), np.append(block, np.nan), block * 2):
        with pytest.raises(ModelError, match="of the mean within the range 4, got 1 of"):
            check_mean(spoiled, PARAMETERS, 3, 0.5)
