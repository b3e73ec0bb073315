"""From real values to polynomials with integer coefficients and back: the encoding of CKKS.

Two real values make one complex number, and the N/2 numbers of a block are what a real polynomial
m of degree below N is at half of the primitive 2N-th roots of unity, one of each conjugate pair
(the canonical embedding; Cheon, Kim, Kim and Song 2017). Here number t is m at z^(4t + 1) with
z = exp(i pi / N), an order in which the embedding is one Fourier transform of half the size: as
z^((4t + 1) N/2) = i and z^(4 N/2) = 1,

    m(z^(4t + 1)) = sum over k < N/2 of (m_k + i m_(k + N/2)) z^k exp(2 pi i t k / (N/2)).

Public unit phases flatten a block first: without them a constant or one-hot block would put all its
energy into one coefficient.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedsens.crypto._parameters import DEGREE, CkksParameters
from fedsens.errors import ValueRangeError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Complexes = NDArray[np.complex128]
#: Which parameter a coordinate belongs to, for errors.
NameOf = Callable[[int], str]

HALF = DEGREE // 2
TWIST = np.exp(1j * np.pi * np.arange(HALF) / DEGREE)  # z^k


def encode(
    values: NDArray[np.floating], parameters: CkksParameters, scale: float = 1.0
) -> Integers:
    """Rounded coefficients of 1-D values times a scale, shape (blocks, N), padded with zeros."""
    blocks = parameters.blocks(len(values))
    padded = np.zeros(blocks * DEGREE)
    np.multiply(values, scale, out=padded[: len(values)], dtype=np.float64)
    # Two values make a number: real and imaginary parts alternate. (blocks, N) -> (blocks, N/2)
    numbers = padded.view(np.complex128).reshape(blocks, HALF)
    numbers *= _flattening(parameters)
    folded = np.fft.fft(numbers, axis=-1)  # the inverse of the module's sum over k, but for z^k
    folded *= TWIST.conj() / HALF
    # m_k + i m_(k + N/2): the halves of the coefficients are real and imaginary parts.
    coefficients = np.empty((blocks, DEGREE), np.int64)
    np.rint(folded.real, out=coefficients[:, :HALF], casting="unsafe")
    np.rint(folded.imag, out=coefficients[:, HALF:], casting="unsafe")
    return coefficients


def decode(coefficients: Integers, parameters: CkksParameters) -> Floats:
    """Undo :func:`encode`: (blocks, N) values, the padding included."""
    folded = np.empty((len(coefficients), HALF), np.complex128)
    folded.real, folded.imag = coefficients[:, :HALF], coefficients[:, HALF:]
    folded *= TWIST * HALF
    numbers: Complexes = np.fft.ifft(folded, axis=-1)
    numbers *= _unflattening(parameters)
    return numbers.view(np.float64)


@lru_cache(maxsize=8)
def _flattening(parameters: CkksParameters) -> Complexes:
    """The phases, times the factor from values to coefficients' units."""
    return _frozen(parameters.phases() * parameters.gain)


@lru_cache(maxsize=8)
def _unflattening(parameters: CkksParameters) -> Complexes:
    return _frozen(1.0 / _flattening(parameters))


def _frozen(array: Complexes) -> Complexes:
    array.flags.writeable = False
    return array


def check_range(
    values: NDArray[np.floating],
    parameters: CkksParameters,
    name_of: NameOf | None = None,
    scale: float = 1.0,
) -> None:
    """Refuse values that the codec cannot represent.

    Args:
        values: 1-D; blocks of N from its start.
        parameters: the parameter set, whose ``value_range`` is R.
        name_of: names the parameter at an index, for the error.
        scale: a factor for all values.

    Raises:
        ValueRangeError: a value is NaN or infinite, or a block's root mean square exceeds R.
    """
    limit = DEGREE * parameters.value_range**2
    with np.errstate(over="ignore", invalid="ignore"):  # both end as a refusal below
        for low in range(0, len(values), DEGREE):
            block = np.multiply(values[low : low + DEGREE], scale, dtype=np.float64)
            if not float(block @ block) <= limit:
                where, problem = _worst(block, low, name_of)
                raise ValueRangeError(
                    "expected finite values of root mean square at most "
                    f"{parameters.value_range:g} per block of {DEGREE}, got {where} {problem}; "
                    "raise fedsens.value-range, or lower the learning rate if training diverges"
                )


def _worst(block: Floats, low: int, name_of: NameOf | None) -> tuple[str, str]:
    finite = np.isfinite(block)
    whole = bool(finite.all())
    index = low + int(np.argmax(np.abs(block)) if whole else np.argmin(finite))
    # An error with names may leave a client, and a position would tell the server more.
    where = name_of(index) if name_of else f"value {index}"
    return where, "beyond that range" if whole else "NaN or infinite"
