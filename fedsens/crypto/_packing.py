"""From real values to complex slots and back: blocks of N values, flattened by public phases."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedsens.crypto._parameters import CkksParameters
from fedsens.errors import ValueRangeError

Floats = NDArray[np.float64]
Slots = NDArray[np.complex128]
NameOf = Callable[[int], str]


@lru_cache(maxsize=8)
def _rotation(parameters: CkksParameters) -> Slots:
    rotation = parameters.phases() * parameters.gain
    rotation.flags.writeable = False
    return rotation


@lru_cache(maxsize=8)
def _inverse_rotation(parameters: CkksParameters) -> Slots:
    inverse = 1.0 / _rotation(parameters)
    inverse.flags.writeable = False
    return inverse


def pack(values: NDArray[np.floating], parameters: CkksParameters, scale: float = 1.0) -> Slots:
    """Pack real values two to a slot, in units of coefficients, and flatten.

    Args:
        values: 1-D, any length; the last block is padded with zeros.
        parameters: the parameter set.
        scale: a factor for all values.

    Returns:
        Complex slots of shape (blocks, N / 2).
    """
    blocks = -(-len(values) // parameters.degree)
    padded = np.zeros(blocks * parameters.degree)
    np.multiply(values, scale, out=padded[: len(values)], dtype=np.float64)
    slots = padded.view(np.complex128).reshape(blocks, parameters.degree // 2)
    slots *= _rotation(parameters)
    return slots


def unpack(slots: Slots, parameters: CkksParameters) -> Floats:
    """Undo :func:`pack`.

    Args:
        slots: shape (blocks, N / 2); overwritten.
        parameters: the parameter set.

    Returns:
        blocks * N values, the padding included.
    """
    slots *= _inverse_rotation(parameters)
    return slots.reshape(-1).view(np.float64)


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
    limit = parameters.degree * parameters.value_range**2
    with np.errstate(over="ignore", invalid="ignore"):  # both end as a refusal below
        for low in range(0, len(values), parameters.degree):
            block = np.multiply(values[low : low + parameters.degree], scale, dtype=np.float64)
            if not float(block @ block) <= limit:
                where, problem = _worst(block, low, name_of)
                raise ValueRangeError(
                    f"expected finite values of root mean square at most "
                    f"{parameters.value_range:g} per block of {parameters.degree}, got {where} "
                    f"{problem}; lower the learning rate or raise the value range"
                )


def _worst(block: Floats, low: int, name_of: NameOf | None) -> tuple[str, str]:
    finite = np.isfinite(block)
    whole = bool(finite.all())
    index = low + int(np.argmax(np.abs(block)) if whole else np.argmin(finite))
    where = f"value {index}" + (f" (in {name_of(index)})" if name_of else "")
    return where, "beyond that range" if whole else "NaN or infinite"
