"""Pseudo-random streams: below the modulus, uniform, and the same again."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsens.keys._stream import residues_below, stream, uint16s


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 2**54 + 24577), st.integers(0, 300), st.binary(min_size=32, max_size=32))
def test_residues_of_a_stream_are_below_the_modulus_and_the_same_again(modulus, count, seed):
    found = residues_below(stream(seed), count, modulus)
    assert len(found) == count
    assert int(found.max(initial=0)) < modulus
    assert found.tolist() == residues_below(stream(seed), count, modulus).tolist()


@pytest.mark.parametrize("modulus", [3, 5, 2**16 - 15])
def test_residues_of_a_stream_are_uniform(modulus):
    count = 60_000
    found = residues_below(stream(bytes(32)), count, modulus)
    bins = np.bincount((found * np.uint64(3) // np.uint64(modulus)).astype(int), minlength=3)
    share = [
        sum(1 for x in range(modulus) if 3 * x // modulus == third) / modulus for third in range(3)
    ]
    for seen, expected in zip(bins / count, share, strict=True):
        assert abs(seen - expected) < 5 * np.sqrt(expected * (1 - expected) / count)


def test_another_seed_is_another_stream_and_a_longer_one_begins_alike():
    first, second = uint16s(bytes(32), 4096), uint16s(bytes(31) + b"1", 4096)
    assert first.max() > 2**15 > first.min()
    assert np.mean(first == second) < 0.01
    assert uint16s(bytes(32), 5000)[:4096].tolist() == first.tolist()
