"""One-time secrets, and the public polynomials that they are multiplied with."""

import copy
import hashlib
import pickle
import traceback

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsens.crypto import OneTimeSecret, _secret
from fedsens.crypto._secret import LIMIT, check_context, public_polynomial
from fedsens.errors import ConfigurationError, KeyMismatchError

from .ring import CONTEXT, NAMES, N, Q, encrypt, parameters

_, SECRET = encrypt("precise", np.zeros(1))
_, OTHER = encrypt("precise", np.zeros(1))


def whole(value=0, kind=np.int64):
    array = np.zeros(N, kind)
    array[7] = value
    return array


def test_an_array_and_back():
    array = SECRET.to_array()
    assert (array.dtype, array.shape) == (np.int64, (N,))
    back = OneTimeSecret.from_array(array)
    assert (back.to_array() == array).all()
    assert back.contributions == 1


def test_arrays_are_copies():
    array = SECRET.to_array()
    held = OneTimeSecret.from_array(array)
    array += 1
    held.to_array()[:] = 0
    assert (held.to_array() == array - 1).all()
    assert (SECRET.to_array() == array - 1).all()


def test_adding_adds_numbers_and_counts():
    total = SECRET + OTHER + SECRET
    assert total.contributions == 3
    assert (total.to_array() == 2 * SECRET.to_array() + OTHER.to_array()).all()
    assert SECRET.contributions == 1
    with pytest.raises(TypeError):
        SECRET + OTHER.to_array()


@settings(deadline=None)
@given(contributions=st.integers(1, 2000), excess=st.integers(-3, 3), sign=st.sampled_from([1, -1]))
def test_the_bound_is_21_for_each_summand(contributions, excess, sign):
    array = whole(sign * (21 * contributions + excess))
    if excess <= 0:
        assert OneTimeSecret.from_array(array, contributions).contributions == contributions
    else:
        with pytest.raises(KeyMismatchError, match=f"for each of {contributions} secrets"):
            OneTimeSecret.from_array(array, contributions)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(N - 1, np.int64),
        np.zeros(N + 1, np.int64),
        np.zeros((1, N), np.int64),
        np.zeros(0, np.int64),
        np.zeros(N),
        np.zeros(N, bool),
        np.zeros(N, object),
        np.zeros(N, np.int64),
        whole(22),
        whole(-22),
        whole(np.iinfo(np.int64).min),
        whole(np.iinfo(np.int64).max),
        whole(np.iinfo(np.uint64).max, np.uint64),
    ],
)
def test_what_cannot_be_a_secret_is_refused(array):
    with pytest.raises(KeyMismatchError, match="expected 4096 whole numbers"):
        OneTimeSecret.from_array(array)


@pytest.mark.parametrize("contributions", [0, -1])
def test_a_sum_of_nothing_is_refused(contributions):
    with pytest.raises(KeyMismatchError):
        OneTimeSecret.from_array(whole(), contributions)


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.uint8, np.uint64, ">i4"])
def test_every_integer_type_is_read(kind):
    assert OneTimeSecret.from_array(whole(21, kind)).to_array()[7] == 21


def test_a_refusal_shows_no_number_of_it():
    array = whole(7654321)
    with pytest.raises(KeyMismatchError) as caught:
        OneTimeSecret.from_array(array)
    assert "7654321" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("show", [repr, str, "{!r:>1}".format, lambda secret: f"{secret}"])
def test_showing_a_secret_shows_its_count_alone(show):
    assert show(SECRET + OTHER) == "OneTimeSecret(contributions=2)"


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, *(lambda s, p=p: pickle.dumps(s, p) for p in range(6))],
)
def test_a_secret_is_neither_pickled_nor_copied(duplicate):
    with pytest.raises(TypeError, match="not picklable"):
        duplicate(SECRET)


def slow(parameters, context, index, limit=2**64 // Q * Q):
    """The sampler as FIPS 203 writes it: one number after another, skipping what is too large."""
    head = b"fedsens public polynomial 3" + parameters.digest + len(context).to_bytes(8, "little")
    data = hashlib.shake_128(head + context + index.to_bytes(8, "little")).digest(16 * N)
    numbers, at = [], 0
    while len(numbers) < N:
        number = int.from_bytes(data[at : at + 8], "little")
        at += 8
        if number < limit:
            numbers.append(number % Q)
    return numbers


@settings(max_examples=20, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    context=st.binary(max_size=40),
    index=st.integers(0, 2**32),
)
def test_it_is_the_sampler_of_the_standard(name, context, index):
    found = public_polynomial(parameters(name), context, index)
    assert found.tolist() == slow(parameters(name), context, index)


def test_it_is_frozen():
    # Changing it parts clients of different versions: raise the version of the wire with it.
    words = public_polynomial(parameters("precise"), CONTEXT, 1)
    assert (
        hashlib.sha256(words.astype("<u8").tobytes()).hexdigest()[:32]
        == "bc76281758d8ff49f7e51fe1ec368a7a"
    )


def test_numbers_that_are_skipped_are_made_up_for_however_many(monkeypatch):
    """With a limit that skips a third, the first stream is too short."""
    monkeypatch.setattr(_secret, "LIMIT", 682 * Q)
    words = public_polynomial(parameters("precise"), CONTEXT, 0)
    assert words.tolist() == slow(parameters("precise"), CONTEXT, 0, 682 * Q)


def test_it_is_uniform_modulo_q():
    assert LIMIT % Q == 0
    assert 0 < 2**64 - LIMIT < Q + 2**54
    words = np.concatenate([public_polynomial(parameters("tiny"), b"", j) for j in range(16)])
    assert int(words.max()) < Q
    shares = words / Q
    assert abs(shares.mean() - 0.5) < 6 / np.sqrt(12 * len(shares))
    counts, _ = np.histogram(shares, 64, (0, 1))
    assert np.abs(counts - len(shares) / 64).max() < 6 * np.sqrt(len(shares) / 64)
    assert abs(np.corrcoef(shares[1:], shares[:-1])[0, 1]) < 6 / np.sqrt(len(shares))


def test_context_parameters_and_block_each_give_another():
    found = {
        public_polynomial(parameters(name), context, index).tobytes()
        for name in NAMES
        for context in (b"", b"a", b"ab", CONTEXT)
        for index in (0, 1, 2**32)
    }
    assert len(found) == len(NAMES) * 4 * 3


def test_a_context_cannot_run_into_the_index_that_follows_it():
    first = public_polynomial(parameters("tiny"), b"\1" + bytes(7), 0)
    for context, index in ((b"", 1), (b"\1", 0)):
        assert (public_polynomial(parameters("tiny"), context, index) != first).any()


@pytest.mark.parametrize("context", ["run 7", 7, None, bytearray(b"run 7"), ["run"]])
def test_a_context_is_bytes(context):
    with pytest.raises(ConfigurationError, match="expected the context as bytes, got"):
        check_context(context)
