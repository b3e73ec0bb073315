import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsens.crypto import _public
from fedsens.crypto._public import LIMIT, check_context, public_polynomial
from fedsens.errors import ConfigurationError

from .kit import CONTEXT, NAMES, N, Q, parameters


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
    monkeypatch.setattr(_public, "LIMIT", 682 * Q)
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
