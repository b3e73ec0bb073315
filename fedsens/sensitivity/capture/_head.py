"""The last layer for free, and at most its width in rows for everything below it.

Where the logits are z = W h + b at each position and B = -s (I - 1 qᵀ), the gradients of W and b
need no backward pass and no matrix of C x C entries: the row of W that belongs to class c has norms
||B_c|| |h|, with B_c the c-th column of B, and ||B_c||² = s² ((1 - q_c)² + (C - 1) q_c²). What lies
below reaches the logits through h alone, so its Jacobian is (B W) dh/dw, and any d rows R with

    RᵀR = (B W)ᵀ(B W) = s² (WᵀW - (Wᵀq)(Wᵀ1)ᵀ - (Wᵀ1)(Wᵀq)ᵀ + C (Wᵀq)(Wᵀq)ᵀ)

have the same L2 norms: d = len(h) backward passes do where B has more rows (many classes). Where h
comes from a ReLU, only its positive entries let a gradient through: R has a row for each of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap

from fedsens.sensitivity._plan import Plan
from fedsens.sensitivity.capture._recorder import Operation, ParameterView


@dataclass(frozen=True)
class Head:
    """A linear layer whose output are the logits, its parameters used nowhere else.

    Attributes:
        operation: the layer.
        inputs: h, (K, *positions, d), with its graph.
        weight: W, (C, d).
        live: which entries of h let a gradient through, (K, T, d) for T positions.
    """

    operation: Operation
    inputs: Tensor
    weight: Tensor
    live: Tensor

    @property
    def passes(self) -> int:
        """How many backward passes what lies below takes: at each position as many as are live."""
        return int(self.live.sum(-1).amax(0).sum())

    def norms(
        self, targets: Mapping[str, ParameterView], q: Tensor, scale: Tensor
    ) -> dict[str, Tensor]:
        """The layer's own part of the map: names to the sums over samples of the L2 norm.

        Of the parameters that are wanted, with q (K, T, C) and s (K, T) for T positions.
        """
        inputs = self.inputs.detach().to(q.dtype).reshape(*q.shape[:2], -1)
        squares = (1 - q).square() + (q.shape[-1] - 1) * q.square()
        squares = squares * scale.square()[..., None]  # of the columns of B, (K, T, C)
        found = {}
        for argument, target in targets.items():
            if argument == "bias":
                found[target.name] = squares.sum(1).sqrt().sum(0)
            elif squares.shape[1] == 1:
                found[target.name] = squares[:, 0].sqrt().T @ inputs[:, 0].abs()
            else:  # at several positions the squares add up before the root
                pairs = zip(squares, inputs, strict=True)
                found[target.name] = sum(
                    ((column.T @ h.square()).sqrt() for column, h in pairs), squares.new_zeros(())
                )
        return found

    def rows(self, q: Tensor, scale: Tensor) -> Iterator[Tensor]:
        """Cotangents of h with the same norms as the rows of B, in h's shape; see :meth:`norms`."""
        weight = self.weight.detach().double()
        plain, ones = weight.T @ weight, weight.sum(0)
        for position in range(q.shape[1]):
            along = q[:, position].double() @ weight  # Wᵀq, (K, d)
            cross = along[:, :, None] * ones
            square = len(weight) * along[:, :, None] * along[:, None, :]
            factor = scale[:, position].double().square()[:, None, None]
            gram = (plain - cross - cross.mT + square) * factor
            for row in _root(gram, self.live[:, position].double()).to(q.dtype).unbind(-1):
                cotangent = row.new_zeros(*q.shape[:2], row.shape[-1])
                cotangent[:, position] = row
                yield cotangent.view(self.inputs.shape)


def mixing(plan: Plan, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Q and s of B = -s (I - 1 qᵀ) for logits (K, *positions, C): (K, T, C) and (K, T)."""

    def of_sample(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        found = plan.base(z, y).mixing
        assert found is not None
        return found

    q, scale = vmap(of_sample)(z, y)
    return q.reshape(len(z), -1, q.shape[-1]), scale.reshape(len(z), -1)


def find_head(operations: Sequence[Operation], z: Tensor) -> Head | None:
    """The last layer of logits (K, *positions, C), if it is linear and by itself."""
    last = next((one for one in operations if one.gives(z)), None)
    if last is None or last.rule.name != "linear":
        return None
    inputs = last.arguments["input"]
    elsewhere = {name for one in operations if one is not last for name in one.names}
    whole = all(target.view is None for target in last.targets.values())
    if not whole or elsewhere & last.names or not inputs.requires_grad or inputs.ndim != z.ndim:
        return None
    relu = inputs.grad_fn is not None and inputs.grad_fn.name() == "ReluBackward0"
    live = inputs > 0 if relu else torch.ones_like(inputs, dtype=torch.bool)
    live = live.reshape(len(inputs), -1, inputs.shape[-1])
    return Head(last, inputs, last.arguments["weight"], live)


def _root(gram: Tensor, live: Tensor) -> Tensor:
    """L with L Lᵀ = gram in what is live for each matrix of a batch, singular ones included.

    Columns without an entry come last, and what is such a column in every matrix is left out.
    """
    gram = gram * live[:, None] * live[:, :, None] + torch.diag_embed(1 - live)
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(gram)
    if bool(info.any()):
        values, vectors = torch.linalg.eigh(gram)
        factor = vectors * values.clamp(min=0).sqrt()[..., None, :]
    factor = factor * live[:, :, None]
    full, order = factor.any(1).sort(descending=True, stable=True)
    return factor.gather(2, order[:, None].expand_as(factor))[..., : int(full.sum(1).max())]
