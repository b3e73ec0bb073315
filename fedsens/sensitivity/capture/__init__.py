"""Per-sample gradients from the inputs and the output gradients of each operation."""

from fedsens.sensitivity.capture._engine import Capture
from fedsens.sensitivity.capture._registry import Cotangent, Lookup, Outer, SampleAxis, register_op

__all__ = [
    "Capture",
    "Cotangent",
    "Lookup",
    "Outer",
    "SampleAxis",
    "register_op",
]
