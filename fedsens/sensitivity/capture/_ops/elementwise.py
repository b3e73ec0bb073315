"""Parameters that are added to or multiplied with activations, or repeated along the batch.

Positional embeddings, class tokens, layer scales: a sample's gradient is its cotangent (times the
other factor), summed over the axes on which the parameter was broadcast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedsens.sensitivity.capture._registry import Cotangent, Gradients, register_op


@register_op(torch.add, torch.Tensor.add, torch.Tensor.__radd__)
def add(cotangent: Cotangent, input: Any, other: Any, *, alpha: float = 1) -> Gradients:
    """Y = x + alpha w."""
    terms = (("input", input, 1.0), ("other", other, alpha))
    return {
        name: to_shape(cotangent.value * factor, term)
        for name, term, factor in terms
        if isinstance(term, Tensor)
    }


@register_op(torch.mul, torch.Tensor.mul, torch.Tensor.__rmul__)
def mul(cotangent: Cotangent, input: Any, other: Any) -> Gradients:
    """Y = x w."""
    pairs = (("input", input, other), ("other", other, input))
    return {
        name: to_shape(cotangent.value * _beside(cotangent, factor), term)
        for name, term, factor in pairs
        if isinstance(term, Tensor)
    }


@register_op(torch.Tensor.expand)
def expand(cotangent: Cotangent, input: Tensor, *sizes: Any) -> Gradients:
    """A parameter repeated, for example for every sample."""
    return {"input": to_shape(cotangent.value, input)}


def to_shape(d: Tensor, parameter: Tensor) -> Tensor:
    """Sum cotangents over the axes on which a parameter was broadcast.

    Args:
        d: (K, *shape of the output, the sample axis divided by K).
        parameter: broadcast to the output's shape.

    Returns:
        (K, *parameter.shape).
    """
    lead = d.ndim - 1 - parameter.ndim
    sizes = (1,) * lead + tuple(parameter.shape)
    axes = [1 + at for at, size in enumerate(sizes) if size == 1]
    return d.sum(axes).reshape(len(d), *parameter.shape) if axes else d


def _beside(cotangent: Cotangent, factor: Any) -> Any:
    """The other factor, in the cotangent's arrangement; it may have no sample axis."""
    if not isinstance(factor, Tensor):
        return factor
    whole = factor.reshape((1,) * (cotangent.value.ndim - 1 - factor.ndim) + tuple(factor.shape))
    if whole.shape[cotangent.axis.axis] == 1:
        return whole[None]
    return cotangent.samples(whole)


@register_op(torch.prelu)
def prelu(cotangent: Cotangent, input: Tensor, weight: Tensor) -> Gradients:
    """Y = w x where x is negative; one slope, or one for each channel (axis 1)."""
    x = cotangent.samples(input).clamp(max=0)
    slopes = cotangent.value * x
    if weight.numel() == 1:
        return {"weight": slopes.flatten(1).sum(1)[:, None]}
    others = (axis for axis in range(1, slopes.ndim) if axis != 2)
    return {"weight": slopes.sum(tuple(others))}
