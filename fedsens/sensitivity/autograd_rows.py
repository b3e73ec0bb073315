"""B = d2L/dy dz by automatic differentiation of the loss alone, for losses without closed form."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jacrev

from fedsens.sensitivity.label_rows import LabelRows, matrix_rows

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
