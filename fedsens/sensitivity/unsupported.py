"""What a model or a loss that a transformation of torch cannot handle may raise."""

from __future__ import annotations

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
