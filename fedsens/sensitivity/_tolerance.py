"""When two computations of the same gradients count as equal, and what torch may refuse."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

# relative to the largest entry; a wrong gradient is off by order 1
TOLERANCE = {torch.float64: 1e-8, torch.float32: 5e-3}
HALF_TOLERANCE = 1e-1


def differing(
    got: Mapping[str, Tensor], expected: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]
) -> list[str]:
    """Compare gradients or norms parameter by parameter.

    Args:
        got: name to tensor; overwritten.
        expected: name to tensor of the same shape.
        dtypes: name to the type of the parameter.

    Returns:
        Names of those that differ by more than rounding.
    """
    peaks = {name: float(value.abs().max()) for name, value in expected.items() if value.numel()}
    # entries that are zero but for rounding are compared with the largest of all
    least = 1e-3 * max(peaks.values(), default=0.0)
    wrong = []
    for name, peak in peaks.items():
        allowed = TOLERANCE.get(dtypes[name], HALF_TOLERANCE) * max(peak, least)
        low, high = got[name].sub_(expected[name]).aminmax()
        if not max(-float(low), float(high)) <= allowed:  # NaN is wrong too
            wrong.append(name)
    return wrong


# FedSensError is none of these; NotImplementedError is a RuntimeError
UNSUPPORTED = (
    RuntimeError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
)
# torch's warning of an operator that vmap runs sample by sample; the others still gain
SLOW = ".*performance drop.*"


def first_line(error: Exception) -> str:
    """The first line of an error's text: torch's go on with lists of backends."""
    return str(error).partition("\n")[0]
