"""Linear maps: ``nn.Linear``, matrix products with a parameter, and ``addmm``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fedsens.sensitivity.capture._registry import (
    Cotangent,
    Gradients,
    Lookup,
    Outer,
    Uncovered,
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
    """The features of every position as columns.

    Args:
        tensor: (K, *positions, features).

    Returns:
        A view (K, 1, features, T).

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
