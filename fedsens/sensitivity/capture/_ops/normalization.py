"""Normalisation layers: G_weight = sum_t d_t x̂_t and G_bias = sum_t d_t."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fedsens.sensitivity.capture._registry import Cotangent, Gradients, register_op


@register_op(functional.layer_norm)
def layer_norm(
    cotangent: Cotangent,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Gradients:
    """Normalised over the last axes."""
    x = functional.layer_norm(cotangent.samples(input), list(normalized_shape), eps=eps)
    return _over_positions(cotangent.value, x, len(normalized_shape))


@register_op(functional.rms_norm)
def rms_norm(
    cotangent: Cotangent,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Gradients:
    """Divided by the root mean square over the last axes."""
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    x = functional.rms_norm(cotangent.samples(input), list(normalized_shape), eps=eps)
    return {"weight": _over_positions(cotangent.value, x, len(normalized_shape))["weight"]}


@register_op(functional.group_norm)
def group_norm(
    cotangent: Cotangent,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Gradients:
    """Normalised over groups of channels."""
    x = cotangent.samples(input)
    x = functional.group_norm(x.flatten(0, 1), num_groups, eps=eps).view(x.shape)
    return _over_maps(cotangent.value, x)


@register_op(functional.batch_norm)
def batch_norm(
    cotangent: Cotangent,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Gradients:
    """Normalised by running statistics, as in eval mode."""
    x = cotangent.samples(input)
    x = functional.batch_norm(x.flatten(0, 1), running_mean, running_var, eps=eps).view(x.shape)
    return _over_maps(cotangent.value, x)


def _over_positions(d: Tensor, x: Tensor, axes: int) -> Gradients:
    """Sums over all axes but the samples and the last ones."""
    between = tuple(range(1, d.ndim - axes))
    return {"weight": (d * x).sum(between), "bias": d.sum(between)}


def _over_maps(d: Tensor, x: Tensor) -> Gradients:
    """Sums over frames and positions of (K, frames, channels, *positions)."""
    between = (1, *range(3, d.ndim))
    return {"weight": (d * x).sum(between), "bias": d.sum(between)}
