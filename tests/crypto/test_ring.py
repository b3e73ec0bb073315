"""The oracles themselves, on rings small enough to see."""

import cmath

import numpy as np
import pytest

from .ring import N, Q, evaluate, exact, interpolate, negacyclic, product


def test_the_product_wraps_with_a_sign():
    assert negacyclic([0, 0, 0, 1], [0, 1, 0, 0], 4) == [-1, 0, 0, 0]  # X^3 X = X^4 = -1
    assert negacyclic([1, 2], [3, 4], 2) == [3 - 8, 4 + 6]


def test_the_fast_schoolbook_product_is_the_definition(rng):
    left, small = rng.integers(0, Q, N), np.zeros(N, np.int64)
    small[[0, 1, 2000, N - 1]] = [21, -21, 5, -1]
    expected = [0] * N
    for place in np.flatnonzero(small):
        monomial = [0] * place + [int(small[place])]
        for i, a in enumerate(left):
            wraps, where = divmod(i + place, N)
            expected[where] += (-1) ** wraps * int(a) * monomial[-1]
    assert (product(left, small) == np.array(expected, object)).all()
    tiny = rng.integers(0, Q, 8)
    padded = np.zeros(N, np.int64)
    padded[:8] = tiny
    other = np.zeros(N, np.int64)
    other[:8] = rng.integers(-21, 22, 8)
    wide = negacyclic(tiny, other[:8], 16)  # no product of degree 7 wraps here or in the ring
    assert list(product(padded, other)[:16]) == wide
    assert exact([2**63 + 1])[0] == 2**63 + 1


def test_the_embedding_here_is_the_canonical_one(rng):
    numbers = rng.normal(size=(N // 2, 2)).view(complex)[:, 0]
    polynomial = interpolate(numbers)
    assert np.abs(polynomial.imag).max() < 1e-12
    assert np.abs(evaluate(polynomial.real) - numbers).max() < 1e-11
    for place in (0, 1, 17, N // 2 - 1):
        root = cmath.exp(1j * cmath.pi * (4 * place + 1) / N)
        assert np.polyval(polynomial.real[::-1], root) == pytest.approx(numbers[place])
