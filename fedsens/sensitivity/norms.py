"""The norm over the rows of the Jacobian, accumulated one row at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedsens.sensitivity.registry import Registry


@dataclass(frozen=True)
class Norm:
    """A norm as a fold over rows.

    Attributes:
        name: its name.
        lift: first row to the accumulator, a new tensor.
        fold: accumulator and next row to the accumulator; may write into it.
        finish: accumulator to the norm.
        order: what ``torch.linalg.vector_norm`` calls it.
        rotates: unchanged by rotations of label space, which alone allows fewer rows or probes.
    """

    name: str
    lift: Callable[[Tensor], Tensor]
    fold: Callable[[Tensor, Tensor], Tensor]
    finish: Callable[[Tensor], Tensor]
    order: Any
    rotates: bool = False


NORMS: Registry[Norm] = Registry("norm")
# addcmul_ would save a pass but has no batching rule: under vmap it would run sample by sample
NORMS.add(
    "l2", Norm("l2", torch.square, lambda a, g: a.add_(g.square()), torch.sqrt, 2, rotates=True)
)
NORMS.add("l1", Norm("l1", torch.abs, lambda a, g: a.add_(g.abs()), lambda a: a, 1))
NORMS.add(
    "linf",
    Norm("linf", torch.abs, lambda a, g: torch.maximum(a, g.abs()), lambda a: a, torch.inf),
)
