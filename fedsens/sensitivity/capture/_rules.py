"""Rules for linear maps, lookups, normalisation, and parameters beside activations.

Normalisation layers: G_weight = sum_t d_t x̂_t and G_bias = sum_t d_t. Of parameters that are added
to or multiplied with activations, or repeated along the batch (positional embeddings, class tokens,
layer scales), a sample's gradient is its cotangent (times the other factor), summed over the axes
on which the parameter was broadcast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fedsens.sensitivity._tolerance import Uncovered
from fedsens.sensitivity.capture._registry import (
    Cotangent,
    Gradients,
    Lookup,
    Outer,
    register_op,
)


@register_op(functional.linear)
def linear(
    cotangent: Cotangent, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Gradients:
    """Y = x Wᵀ + b: G_W = sum_t d_t x_tᵀ, G_b = sum_t d_t."""
    d = columns(cotangent.value)
    outer = Outer(d, lambda part: columns(cotangent.samples(input)[part]), lambda w: w[None])
    return {"weight": outer} | ({} if bias is None else {"bias": d[:, 0].sum(-1)})


@register_op(torch.matmul, torch.Tensor.matmul, torch.mm, torch.Tensor.mm)
def matmul(cotangent: Cotangent, input: Tensor, other: Tensor) -> Gradients:
    """Y = x W with a matrix W: G_W = sum_t x_t d_tᵀ; or Y = W x: G_W = sum_t d_t x_tᵀ."""
    if other.ndim > 2 == input.ndim:
        d = _positions(cotangent.value)
        left = Outer(d, lambda part: _positions(cotangent.samples(other)[part]), lambda w: w[None])
        return {"input": left}
    d = columns(cotangent.value)
    right = Outer(d, lambda part: columns(cotangent.samples(input)[part]), lambda w: w.T[None])
    return {"other": right}


@register_op(torch.addmm, torch.Tensor.addmm)
def addmm(cotangent: Cotangent, input: Tensor, mat1: Tensor, mat2: Tensor) -> Gradients:
    """Y = b + x W, with a bias vector."""
    return {
        "mat2": matmul(cotangent, mat1, mat2)["other"],
        "input": columns(cotangent.value)[:, 0].sum(-1),
    }


def columns(tensor: Tensor) -> Tensor:
    """The features (K, *positions, features) as columns: a view (K, 1, features, T).

    Raises:
        Uncovered: there are no positions.
    """
    if tensor.ndim < 3:
        raise Uncovered("a linear map of a single vector")
    return tensor.flatten(1, -2).mT.unsqueeze(1)


def _positions(tensor: Tensor) -> Tensor:
    """(K, *lead, features, positions) to (K, 1, features, T), T over lead and positions."""
    return tensor.movedim(-2, 1).flatten(2).unsqueeze(1)


@register_op(functional.embedding)
def embedding(
    cotangent: Cotangent,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Gradients:
    """y_t = W[i_t]: G_W[i_t] += d_t; nothing for the padding index."""
    index = cotangent.samples(input).flatten(1)
    d = cotangent.value.flatten(1, -2)
    if scale_grad_by_freq:  # torch divides by how often the word occurs, here in the sample
        d = d / (index[:, :, None] == index[:, None, :]).sum(-1)[..., None]
    if padding_idx is not None:
        padding = padding_idx % len(weight)
        d = d.masked_fill((index == padding)[..., None], 0)
    return {"weight": Lookup(index, d)}


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
    """Sum cotangents over the axes on which a parameter was broadcast: (K, *parameter.shape)."""
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
