import gc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsens.crypto import Aggregator, OneTimeSecret, parse_batch, residues
from fedsens.crypto._wire import FRESH, MAX_CONTRIBUTIONS, PLANES, SUM, to_wire, write_batch
from fedsens.errors import CiphertextError, CryptoError

from .ring import NAMES, N, decrypt, encrypt, exact, parameters

COMPACT = parameters("compact")
VALUES = np.random.default_rng(0).normal(0, 0.1, N + 9)
DATA, SECRET = encrypt("compact", VALUES)


def reachable(root):
    """Every object that can be reached from ``root``, types and modules left out."""
    seen, queue = {}, [root]
    while queue:
        item = queue.pop()
        if id(item) not in seen and not isinstance(item, type | type(gc)):
            seen[id(item)] = item
            queue += gc.get_referents(item)
    return seen.values()


def batch_of(words, params, kind=FRESH, contributions=1):
    return write_batch(params, kind, words.size, contributions, [to_wire(words, params)])


def test_it_is_built_from_public_parameters_and_holds_nothing_that_opens():
    aggregator = Aggregator(COMPACT)
    aggregator.add(DATA)
    public = [name for name in vars(Aggregator) if not name.startswith("_")]
    assert public == ["contributions", "add", "result", "sum"]
    held = list(reachable(vars(aggregator)))
    assert not any(isinstance(item, OneTimeSecret) for item in held)
    assert not {type(item).__name__ for item in held} & {"SecretKey", "Decryptor", "Encryptor"}


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    clients=st.integers(1, 9),
    room=st.integers(2, 5),
    seed=st.integers(0, 2**32),
)
def test_the_sum_is_that_of_whole_numbers_modulo_p(name, clients, room, seed):
    """However often it is reduced on the way; residues near p are the worst case."""
    params, rng = parameters(name), np.random.default_rng(seed)
    p = params.wire_modulus
    low = rng.integers(0, 2) * (p - 3)
    words = rng.integers(low, p, (clients, 2, N), np.uint64)
    aggregator = Aggregator(params)
    aggregator._room = room
    for each in words:
        aggregator.add(batch_of(each, params))
    total = residues(aggregator.result(), params)
    assert (exact(total) == sum(exact(each) for each in words) % p).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_room_is_what_sums_hold(name):
    params = parameters(name)
    room, largest = Aggregator(params)._room, params.wire_modulus - 1
    assert room * largest < 2**64
    for _, kind in PLANES[params.wire_bytes]:
        digit = np.iinfo(kind)
        assert room * int(digit.max) < 2 ** (2 * digit.bits)
    # Claimed sums have residues below p as well, so each counts as one.
    assert room >= 257


@pytest.mark.parametrize("name", ["compact", "exact"])
def test_exactly_as_many_as_the_room_holds_do_not_overflow(name):
    params = parameters(name)
    words = np.full((1, N), params.wire_modulus - 1, np.uint64)
    aggregator, data = Aggregator(params), batch_of(words, params)
    count = 2 * aggregator._room + 1
    for _ in range(count):
        aggregator.add(data)
    total = residues(aggregator.result(), params)
    assert (total == count * (params.wire_modulus - 1) % params.wire_modulus).all()


def test_an_empty_sum_is_an_error():
    with pytest.raises(CiphertextError, match="at least one batch"):
        Aggregator(COMPACT).result()
    with pytest.raises(CiphertextError, match="at least one batch"):
        Aggregator(COMPACT).sum([])


def test_sum_adds_to_what_was_added_before_and_takes_any_iterable():
    aggregator = Aggregator(COMPACT)
    aggregator.add(DATA)
    total = aggregator.sum(data for data in (DATA, DATA))
    assert aggregator.contributions == 3
    opened = decrypt("compact", total, SECRET + SECRET + SECRET)
    # One ciphertext three times has three times its noise, not three independent noises.
    assert np.abs(opened - 3 * VALUES).max() <= 3 * COMPACT.error_bound(1)


def test_aggregators_do_not_share_a_sum():
    first, second = Aggregator(COMPACT), Aggregator(COMPACT)
    first.add(DATA)
    first.add(DATA)
    second.add(DATA)
    assert (residues(second.result(), COMPACT) == residues(DATA, COMPACT)).all()


def test_a_result_does_not_change_when_more_is_added():
    aggregator = Aggregator(COMPACT)
    aggregator.add(DATA)
    before = aggregator.result()
    copy = bytes(bytearray(before))
    aggregator.add(DATA)
    assert before == copy != aggregator.result()


def test_a_batch_that_is_added_is_not_kept():
    data = bytearray(DATA)
    aggregator = Aggregator(COMPACT)
    aggregator.add(data)
    data[:] = bytes(len(data))
    assert residues(aggregator.result(), COMPACT).any()


def test_a_number_of_values_given_at_the_start_binds_the_first_batch():
    for values in (7, 0):
        with pytest.raises(CiphertextError, match=f"a batch of {values} values, got {N + 9}"):
            Aggregator(COMPACT, values=values).add(DATA)
    bound = Aggregator(COMPACT, values=N + 9)
    bound.add(DATA)
    assert bound.contributions == 1


def test_the_first_batch_binds_the_rest():
    aggregator = Aggregator(COMPACT)
    aggregator.add(DATA)
    with pytest.raises(CiphertextError, match=f"a batch of {N + 9} values, got {N + 8}"):
        aggregator.add(encrypt("compact", VALUES[:-1])[0])


def test_a_client_must_not_send_a_sum():
    total = Aggregator(COMPACT).sum([DATA])
    aggregator = Aggregator(COMPACT)
    with pytest.raises(CiphertextError, match="expected a fresh batch, got one that is a sum"):
        aggregator.add(total, fresh=True)
    aggregator.add(DATA, fresh=True)
    assert aggregator.contributions == 1


def test_a_refused_batch_leaves_the_sum_as_it_was():
    large = np.full((2, N), COMPACT.wire_modulus, np.uint64)
    large[0] = 1  # the first block alone would be fine
    refused = [
        DATA[:-1],
        b"",
        bytes(len(DATA)),
        write_batch(COMPACT, FRESH, N + 9, 1, [to_wire(large, COMPACT)]),
        encrypt("compact", VALUES[:5])[0],
        encrypt("precise", VALUES)[0],
    ]
    aggregator = Aggregator(COMPACT)
    for data in refused[:4]:
        with pytest.raises(CryptoError):
            aggregator.add(data)
    assert aggregator.contributions == 0
    aggregator.add(DATA)
    before = aggregator.result()
    for data in refused:
        with pytest.raises(CryptoError):
            aggregator.add(data)
    assert aggregator.result() == before
    assert aggregator.contributions == 1


def test_a_refused_first_batch_binds_nothing():
    aggregator = Aggregator(COMPACT)
    with pytest.raises(CiphertextError):
        aggregator.add(DATA[:-1])
    aggregator.add(encrypt("compact", VALUES[:5])[0])
    assert aggregator.contributions == 1


def test_summands_cannot_be_counted_past_the_field():
    liar = batch_of(np.zeros((1, N), np.uint64), COMPACT, SUM, MAX_CONTRIBUTIONS)
    aggregator = Aggregator(COMPACT)
    aggregator.add(encrypt("compact", np.zeros(N))[0])
    with pytest.raises(CiphertextError, match=f"at most {MAX_CONTRIBUTIONS} contributions"):
        aggregator.add(liar)
    assert parse_batch(aggregator.result(), COMPACT).contributions == 1
