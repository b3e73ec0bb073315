"""PReLU, whose slope is a parameter."""

from __future__ import annotations

import torch
from torch import Tensor

from fedsens.sensitivity.capture.registry import Cotangent, Gradients, register_op


@register_op(torch.prelu)
def prelu(cotangent: Cotangent, input: Tensor, weight: Tensor) -> Gradients:
    """Y = w x where x is negative; one slope, or one for each channel (axis 1)."""
    x = cotangent.samples(input).clamp(max=0)
    slopes = cotangent.value * x
    if weight.numel() == 1:
        return {"weight": slopes.flatten(1).sum(1)[:, None]}
    others = (axis for axis in range(1, slopes.ndim) if axis != 2)
    return {"weight": slopes.sum(tuple(others))}
