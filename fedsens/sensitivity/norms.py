"""The norm over the rows of the Jacobian, accumulated one row at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedsens.errors import SensitivityError
from fedsens.extensions import Registry


@dataclass(frozen=True)
class Norm:
    """A norm as a fold over rows.

    Attributes:
        name: its name.
        lift: first row to the accumulator, a new tensor.
        fold: accumulator and next row to the accumulator; may write into it.
        finish: accumulator to the norm.
        over: many rows at once and the axis they are on, to the norm; may write into them.
        order: what ``torch.linalg.vector_norm`` calls it.
        rotates: unchanged by rotations of label space, which alone allows fewer rows or probes.
    """

    name: str
    lift: Callable[[Tensor], Tensor]
    fold: Callable[[Tensor, Tensor], Tensor]
    finish: Callable[[Tensor], Tensor]
    over: Callable[[Tensor, int], Tensor]
    order: Any
    rotates: bool = False

    def step(self, folded: Tensor | None, row: Tensor) -> Tensor:
        """Fold one more row.

        Args:
            folded: the accumulator, or None before the first row.
            row: the row.

        Returns:
            The accumulator.
        """
        return self.lift(row) if folded is None else self.fold(folded, row)


NORMS: Registry[Norm] = Registry("norm", error=SensitivityError)
NORMS.add(
    "l2",
    Norm(
        "l2",
        torch.square,
        # addcmul_ would save a pass but has no batching rule: under vmap it would be a loop
        lambda a, g: a.add_(g.square()),
        torch.sqrt,
        lambda g, axis: g.square_().sum(axis).sqrt_(),
        2,
        rotates=True,
    ),
)
NORMS.add(
    "l1",
    Norm(
        "l1",
        torch.abs,
        lambda a, g: a.add_(g.abs()),
        lambda a: a,
        lambda g, axis: g.abs_().sum(axis) if g.shape[axis] > 1 else g.abs_().squeeze(axis),
        1,
    ),
)
NORMS.add(
    "linf",
    Norm(
        "linf",
        torch.abs,
        lambda a, g: torch.maximum(a, g.abs()),
        lambda a: a,
        lambda g, axis: g.abs_().amax(axis),
        torch.inf,
    ),
)
