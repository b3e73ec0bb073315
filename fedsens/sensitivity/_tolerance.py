"""When two computations of the same gradients count as equal, and whose fault an error is."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

# relative to the largest entry; a wrong gradient is off by order 1
TOLERANCE = {torch.float64: 1e-8, torch.float32: 5e-3}
HALF_TOLERANCE = 1e-1


def differing(
    got: Mapping[str, Tensor], expected: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]
) -> list[str]:
    """Names of gradients or norms that differ by more than rounding; ``got`` is overwritten."""
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


class Uncovered(ValueError):  # noqa: N818 - never reaches a user
    """A rule does not cover a call, which is no fault of it: another engine does."""


@contextmanager
def refusals(what: str) -> Iterator[None]:
    """Say :class:`Uncovered` where the model or torch refuses, which is no fault of ours."""
    try:
        yield
    except UNSUPPORTED as error:
        raise Uncovered(f"{type(error).__name__} {what}: {first_line(error)}") from error


@contextmanager
def own_faults_told(what: str, names: Iterable[str], problems: dict[str, str]) -> Iterator[None]:
    """Leave some parameters to another engine if the code inside raises, and warn of it.

    Code inside is a rule's or this package's own, so an error other than :class:`Uncovered` is a
    fault: the map stays right, but the fault must not stay unseen.
    """
    try:
        yield
    except Uncovered as error:
        problems.update(dict.fromkeys(names, str(error)))
    except UNSUPPORTED as error:
        told = sorted(names)
        problems.update(dict.fromkeys(told, f"{type(error).__name__} in {what}"))
        warnings.warn(
            f"{what} raised {type(error).__name__}: {first_line(error)}; what it is about "
            f"({', '.join(told)}) is left to a slower engine, which is right but should not be "
            "needed",
            stacklevel=3,
        )


def first_line(error: Exception) -> str:
    """The first line of an error's text: torch's go on with lists of backends."""
    return str(error).partition("\n")[0]
