"""Rows of the parameter-label Jacobian of one sample, their random combinations, their norms.

With logits z, J_m = d/dy dL/dw_m = B g_m, where g_m = dz/dw_m and B = d2L/dy dz. B depends on
the loss alone, never on the network, so ||J_m|| needs one backward pass per row of B and no
double backward. Here B is a linear map: ``apply`` takes weights of its rows, of shape
(r, count), to r cotangents of the logits, of shape (r, *z.shape). :class:`LabelRows` and what makes
them are about one sample, without a batch axis, and may run inside ``torch.func.vmap``. Losses
without a closed form are differentiated automatically, the loss alone.

Random rows estimate the L2 norm without bias. For a random r x n matrix U with orthonormal rows,
uniform over the directions, and a vector J of n rows, sqrt(sum_r (U_r J)²) has expectation c ||J||
with a constant c that does not depend on J. The matrices of :func:`random_probes` are divided by
that constant, so the estimate is unbiased for every number of probes, one included. (Rademacher
probes are not offered: their constant depends on J. Gaussian ones are unbiased too, but never
closer.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, lgamma, log, prod, sqrt
from typing import Any

import torch
from torch import Tensor
from torch.func import jacrev
from torch.nn.functional import pad

from fedsens._extensions import Registry
from fedsens.errors import SensitivityError


@dataclass(frozen=True)
class LabelRows:
    """Rows of B, produced on demand.

    Attributes:
        count: number of rows.
        apply: weights of the rows (r, count) to cotangents (r, *z.shape).
        like: a tensor whose type and device the rows have.
        reduced: fewer rows V with VᵀV = BᵀB, so with the same L2 norms, if a closed form exists.
        mixing: q and s where B = -s (I - 1 qᵀ) at each position, with the classes on the last axis:
            q of shape (*positions, C) and s of shape (*positions).
    """

    count: int
    apply: Callable[[Tensor], Tensor]
    like: Tensor
    reduced: LabelRows | None = None
    mixing: tuple[Tensor, Tensor] | None = None

    def row(self, index: int) -> Tensor:
        """One row, in the logits' shape.

        Args:
            index: which, in ``[0, count)``.

        Returns:
            The cotangent of the logits.
        """
        weights = torch.zeros((1, self.count), dtype=self.like.dtype, device=self.like.device)
        weights[0, index] = 1
        return self.apply(weights)[0]

    def combined(self, weights: Tensor) -> LabelRows:
        """The rows ``weights @ B``.

        Args:
            weights: combinations, of shape (r, count).

        Returns:
            r rows.
        """
        mixed = self.apply(weights.to(self.like.dtype))
        return matrix_rows(mixed, self.like)


def matrix_rows(matrix: Tensor, z: Tensor) -> LabelRows:
    """Rows given in full: a matrix B of shape (rows, *z.shape)."""
    flat = matrix.reshape(matrix.shape[0], -1)

    def apply(weights: Tensor) -> Tensor:
        return (weights @ flat).reshape(-1, *z.shape)

    return LabelRows(matrix.shape[0], apply, z)


def diagonal_rows(weight: float, z: Tensor) -> LabelRows:
    """Rows of ``weight`` times the identity, for losses whose outputs do not mix."""
    mixing = torch.zeros_like(z), torch.full_like(z[..., 0], weight)
    return LabelRows(prod(z.shape), lambda u: weight * u.reshape(-1, *z.shape), z, None, mixing)


def softmax_rows(z: Tensor, q: Tensor, scale: Tensor) -> LabelRows:
    """Rows of B = -scale (I - 1 qᵀ) at each position, q a distribution over the classes.

    This is cross-entropy in every convention: q = softmax(z) for unnormalised labels, q = y for
    labels divided by their sum, q = 1/C for the derivative along the simplex. B has rank C - 1
    (B 1 = 0), which :attr:`LabelRows.reduced` uses.

    Args:
        z: logits, (*positions, C).
        q: distributions, (*positions, C).
        scale: factor of each position, (*positions).
    """

    def apply(weights: Tensor) -> Tensor:
        u = weights.reshape(-1, *z.shape)
        return (u.sum(-1, keepdim=True) * q - u) * scale[..., None]

    return LabelRows(prod(z.shape), apply, z, _factor(z, q, scale), (q, scale))


def _factor(z: Tensor, q: Tensor, scale: Tensor) -> LabelRows:
    """The square root of BᵀB = P + C (Pq)(Pq)ᵀ, P = I - 11ᵀ/C, in C - 1 rows per position.

    With E a (C-1, C) orthonormal basis of the complement of 1 (a Helmert-like matrix; here the
    one of the Householder reflection, which costs O(C) to apply) and u = E q, the rows are
    (I + beta u uᵀ) E with beta = (sqrt(1 + C |u|²) - 1) / |u|².
    """
    classes = z.shape[-1]
    root = sqrt(classes)
    centred = q - q.mean(-1, keepdim=True)
    along = centred[..., 1:] + (centred[..., :1] / (root - 1))
    beta = classes / (torch.sqrt(1 + classes * centred.square().sum(-1)) + 1)

    def apply(weights: Tensor) -> Tensor:
        u = weights.reshape(-1, *z.shape[:-1], classes - 1)
        total = u.sum(-1, keepdim=True)
        rotated = pad(u, (1, 0)) + _first_column(total, root, classes)
        stretch = (u * along).sum(-1) * beta
        return (rotated + stretch[..., None] * centred) * scale[..., None]

    return LabelRows(prod(z.shape[:-1]) * (classes - 1), apply, z)


def _first_column(total: Tensor, root: float, classes: int) -> Tensor:
    others = (-total / (root * (root - 1))).expand(*total.shape[:-1], classes - 1)
    return torch.cat([total / root, others], -1)


Value = Callable[[Tensor, Tensor], Tensor]


def autograd_rows(value: Value, z: Tensor, y: Tensor) -> LabelRows:
    """Rows of B for any twice differentiable loss of one sample, its logits and floating label."""
    # chunk_size=1 loops over the outputs instead of using vmap, which a user's loss may not allow
    inner = jacrev(value, argnums=1, chunk_size=1)
    mixed = jacrev(inner, argnums=0, chunk_size=1)(z, y)
    return matrix_rows(mixed.reshape(y.numel(), *z.shape), z)


def normalized(value: Value) -> Value:
    """The loss as a function of labels that are divided by their sum over the last axis."""
    return lambda z, y: value(z, y / label_total(y))


def label_total(y: Tensor) -> Tensor:
    """What to divide a label by so that it sums to 1."""
    total = y.sum(-1, keepdim=True)
    return torch.where(total == 0, torch.ones_like(total), total)


def tangent(value: Value) -> Value:
    """The loss whose label derivative is that of ``value`` along constant label sums."""

    def projected(z: Tensor, y: Tensor) -> Tensor:
        mean = y.mean(-1, keepdim=True)
        return value(z, y - mean + mean.detach())

    return projected


@dataclass(frozen=True)
class Norm:
    """A norm as a fold over rows.

    Attributes:
        name: its name.
        lift: first row to the accumulator, a new tensor.
        fold: accumulator and next row to the accumulator; may write into it.
        finish: accumulator to the norm.
        order: what ``torch.linalg.vector_norm`` calls it.
    """

    name: str
    init: Callable[[Tensor], Tensor]
    fold: Callable[[Tensor, Tensor], Tensor]
    finish: Callable[[Tensor], Tensor]
    order: Any

    @property
    def rotation_invariant(self) -> bool:
        """Unchanged by rotations of label space, which alone allows fewer rows or probes."""
        return self.name == "l2"

    def step(self, folded: Tensor | None, row: Tensor) -> Tensor:
        """Fold one more row; None is the accumulator before the first one."""
        return self.init(row) if folded is None else self.fold(folded, row)


NORMS: Registry[Norm] = Registry("norm", error=SensitivityError)
# addcmul_ would save a pass but has no batching rule: under vmap it would be a loop
NORMS.add("l2", Norm("l2", torch.square, lambda a, g: a.add_(g.square()), torch.sqrt, 2))
NORMS.add("l1", Norm("l1", torch.abs, lambda a, g: a.add_(g.abs()), lambda a: a, 1))
NORMS.add(
    "linf", Norm("linf", torch.abs, lambda a, g: torch.maximum(a, g.abs()), lambda a: a, torch.inf)
)

# above, directions are orthogonal but for less than the square root of r / n
HAAR_ROWS = 4096


def random_probes(samples: int, probes: int, rows: int, generator: torch.Generator) -> Tensor:
    """Orthonormal probes, uniform over the directions (Haar); exact when r = n.

    The constant is G((r+1)/2) G(n/2) / (G(r/2) G((n+1)/2)). Above 4096 rows independent normal
    probes stand for them, with E sqrt(chi²_r) = sqrt(2) G((r+1)/2) / G(r/2): there the two are
    alike.

    Returns:
        Weights, (K, r, n), float64.
    """
    # one draw per sample: a single large draw would depend on how samples are cut into batches
    shape = (probes, rows)
    normal = torch.stack([
        torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(samples)
    ])
    if rows > HAAR_ROWS:
        return normal / exp(log(2) / 2 + _gamma_ratio(probes))
    # the signs that QR leaves open do not matter: only the span of the probes does
    frames: Tensor = torch.linalg.qr(normal.mT).Q.mT
    return frames / exp(_gamma_ratio(probes) - _gamma_ratio(rows))


def _gamma_ratio(n: int) -> float:
    return lgamma((n + 1) / 2) - lgamma(n / 2)
