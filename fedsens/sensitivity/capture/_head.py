"""The last layer for free, and at most its width in rows for everything below it.

Where the logits are z = W h + b at each position and B = -s (I - 1 qᵀ), the gradients of W and b
need no backward pass and no matrix of C x C entries: the row of W that belongs to class c has norms
||B_c|| |h|, with B_c the c-th column of B, and ||B_c||² = s² ((1 - q_c)² + (C - 1) q_c²). What lies
below reaches the logits through h alone, so its Jacobian is (B W) dh/dw, and any d rows R with

    RᵀR = (B W)ᵀ(B W) = s² (WᵀW - (Wᵀq)(Wᵀ1)ᵀ - (Wᵀ1)(Wᵀq)ᵀ + C (Wᵀq)(Wᵀq)ᵀ)

have the same L2 norms: d = len(h) backward passes do where B has more rows (many classes).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.func import vmap

from fedsens.sensitivity._plan import Plan
from fedsens.sensitivity.capture._recorder import Target, Use


@dataclass(frozen=True)
class Head:
    """A linear layer whose output are the logits, its parameters used nowhere else.

    Attributes:
        use: the layer.
        inputs: h, (K, *positions, d), with its graph.
        weight: W, (C, d).
    """

    use: Use
    inputs: Tensor
    weight: Tensor

    @property
    def rows(self) -> int:
        """How many backward passes what lies below takes: d for each position."""
        return prod(self.inputs.shape[1:])

    def bound(self, plan: Plan, z: Tensor, y: Tensor) -> BoundHead:
        """The layer with the B of some samples.

        Args:
            plan: the map's options.
            z: logits (K, *positions, C), fp32 or fp64.
            y: label vectors, the batch first.

        Returns:
            What gives norms and rows.
        """

        def mixing(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            found = plan.base(z, y).mixing
            assert found is not None
            return found

        q, scale = vmap(mixing)(z, y)
        inputs = self.inputs.detach().to(z.dtype)
        samples = len(z)
        return BoundHead(
            self.inputs,
            self.weight.detach().double(),
            inputs.reshape(samples, -1, inputs.shape[-1]),
            q.reshape(samples, -1, q.shape[-1]),
            scale.reshape(samples, -1),
            {target: argument for argument, target in self.use.targets.items()},
        )


@dataclass(frozen=True)
class BoundHead:
    """A last layer and the B of some samples, T positions each.

    Attributes:
        like: h as the model has it.
        weight: W, (C, d), fp64.
        inputs: h, (K, T, d).
        q: (K, T, C).
        scale: s, (K, T).
        arguments: the layer's parameters and which argument each of them is.
    """

    like: Tensor
    weight: Tensor
    inputs: Tensor
    q: Tensor
    scale: Tensor
    arguments: Mapping[Target, str]

    def norms(self, targets: Mapping[str, Target]) -> dict[str, Tensor]:
        """The layer's own part of the map.

        Args:
            targets: argument to parameter, for the parameters that are wanted.

        Returns:
            Parameter's name to the sum over samples of the L2 norm.
        """
        classes, q = self.q.shape[-1], self.q
        squares = (1 - q).square() + (classes - 1) * q.square()
        squares = squares * self.scale.square()[..., None]  # of the columns of B, (K, T, C)
        found = {}
        for argument, target in targets.items():
            if argument == "bias":
                found[target.name] = squares.sum(1).sqrt().sum(0)
            elif squares.shape[1] == 1:
                found[target.name] = squares[:, 0].sqrt().T @ self.inputs[:, 0].abs()
            else:  # at several positions the squares add up before the root
                pairs = zip(squares, self.inputs, strict=True)
                found[target.name] = sum(
                    ((column.T @ h.square()).sqrt() for column, h in pairs), squares.new_zeros(())
                )
        return found

    def rows(self) -> Iterator[Tensor]:
        """Cotangents of h with the same norms as the rows of B, in h's shape."""
        plain = self.weight.T @ self.weight
        ones = self.weight.sum(0)
        for position in range(self.q.shape[1]):
            q, scale = self.q[:, position].double(), self.scale[:, position].double()
            along = q @ self.weight  # Wᵀq, (K, d)
            cross = along[:, :, None] * ones
            square = len(self.weight) * along[:, :, None] * along[:, None, :]
            gram = (plain - cross - cross.mT + square) * scale.square()[:, None, None]
            for row in _root(gram).to(self.q.dtype).unbind(-1):
                cotangent = row.new_zeros(self.inputs.shape)
                cotangent[:, position] = row
                yield cotangent.view(self.like.shape)


def find_head(uses: Sequence[Use], z: Tensor) -> Head | None:
    """The last layer, if it is linear and by itself.

    Args:
        uses: captured operations.
        z: logits (K, *positions, C), with their graph.

    Returns:
        The head, or None.
    """
    last = next((use for use in uses if use.gives(z)), None)
    if last is None or last.rule.name != "linear":
        return None
    inputs = last.arguments["input"]
    elsewhere = {name for use in uses if use is not last for name in use.names}
    whole = all(target.view is None for target in last.targets.values())
    if not whole or elsewhere & last.names or not inputs.requires_grad or inputs.ndim != z.ndim:
        return None
    return Head(last, inputs, last.arguments["weight"])


def _root(gram: Tensor) -> Tensor:
    """L with L Lᵀ = gram for each matrix of a batch, singular ones included."""
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(gram)
    if bool(info.any()):
        values, vectors = torch.linalg.eigh(gram)
        factor = vectors * values.clamp(min=0).sqrt()[..., None, :]
    return factor
