"""The logits side of the parameter-label Jacobian of one sample.

With logits z, J_m = d/dy dL/dw_m = B g_m, where g_m = dz/dw_m and B = d2L/dy dz. B depends on
the loss alone, never on the network, so ||J_m|| needs one backward pass per row of B and no
double backward. Here B is a linear map: ``apply`` takes weights of its rows, of shape
(r, count), to r cotangents of the logits, of shape (r, *z.shape). Everything in this file is
about one sample, without a batch axis, and may run inside ``torch.func.vmap``.

Losses without a closed form are differentiated automatically, the loss alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod, sqrt

import torch
from torch import Tensor
from torch.func import jacrev
from torch.nn.functional import pad


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
    """Rows given in full.

    Args:
        matrix: B, of shape (rows, *z.shape).
        z: logits.

    Returns:
        The rows.
    """
    flat = matrix.reshape(matrix.shape[0], -1)

    def apply(weights: Tensor) -> Tensor:
        return (weights @ flat).reshape(-1, *z.shape)

    return LabelRows(matrix.shape[0], apply, z)


def diagonal_rows(weight: float, z: Tensor) -> LabelRows:
    """Rows of ``weight`` times the identity, for losses whose outputs do not mix.

    Args:
        weight: the diagonal.
        z: logits.

    Returns:
        One row per output.
    """
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

    Returns:
        C rows per position, and C - 1 in the reduced form.
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
    """Rows of B for any twice differentiable loss.

    Args:
        value: one sample's loss, (z, y) to a scalar.
        z: logits of the sample.
        y: label of the sample, floating point, any shape.

    Returns:
        One row per label coordinate.
    """
    # chunk_size=1 loops over the outputs instead of using vmap, which a user's loss may not allow
    inner = jacrev(value, argnums=1, chunk_size=1)
    mixed = jacrev(inner, argnums=0, chunk_size=1)(z, y)
    return matrix_rows(mixed.reshape(y.numel(), *z.shape), z)


def normalized(value: Value) -> Value:
    """The loss as a function of labels that are divided by their sum.

    Args:
        value: one sample's loss.

    Returns:
        (z, y) to value(z, y / sum y), the sum over the last axis.
    """
    return lambda z, y: value(z, y / label_total(y))


def label_total(y: Tensor) -> Tensor:
    """What to divide a label by so that it sums to 1.

    Args:
        y: label, the classes on the last axis.

    Returns:
        The sum over the last axis, kept as an axis; 1 where the label is all zero (ignored).
    """
    total = y.sum(-1, keepdim=True)
    return torch.where(total == 0, torch.ones_like(total), total)


def tangent(value: Value) -> Value:
    """The loss whose label derivative is that of ``value`` along constant label sums.

    Args:
        value: one sample's loss.

    Returns:
        The loss with its label projected on the directions that keep the last axis' sum; the
        removed part is a constant, so the value is unchanged.
    """

    def projected(z: Tensor, y: Tensor) -> Tensor:
        mean = y.mean(-1, keepdim=True)
        return value(z, y - mean + mean.detach())

    return projected
