"""Embedding tables."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from fedsens.sensitivity.capture.gradients import Lookup
from fedsens.sensitivity.capture.registry import Cotangent, Gradients, register_op


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
