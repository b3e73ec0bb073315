"""Transposed convolutions: input and cotangent change places."""

from __future__ import annotations

import torch
from torch import Tensor

from fedsens.sensitivity.capture.gradients import Outer
from fedsens.sensitivity.capture.ops.convolution import Sizes, channels, on_each_axis, windows
from fedsens.sensitivity.capture.registry import Cotangent, Gradients, register_op


@register_op(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)
def transposed_convolution(
    cotangent: Cotangent,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
) -> Gradients:
    """Its gradient is a convolution's with the windows over the cotangent."""
    kernel = tuple(weight.shape[2:])
    d = windows(cotangent.value, kernel, stride, padding, dilation, groups)
    # with output padding the cotangent has room for windows that no input position belongs to
    positions = [
        (size - hole * (k - 1) - 1 + 2 * pad) // step + 1
        for size, k, step, hole, pad in zip(
            cotangent.value.shape[3:],
            kernel,
            *(on_each_axis(value, len(kernel)) for value in (stride, dilation, padding)),
            strict=True,
        )
    ]
    d = d.reshape(*d.shape[:-1], cotangent.value.shape[1], *positions)
    for axis, size in enumerate(input.shape[2:]):
        d = d.narrow(4 + axis, 0, size)

    def inputs(part: slice) -> Tensor:
        return channels(cotangent.samples(input)[part], groups)

    def fit(w: Tensor) -> Tensor:
        return w.view(groups, w.shape[0] // groups, -1).mT

    outer = Outer(d.flatten(3), inputs, fit)
    shifts = {} if bias is None else {"bias": cotangent.value.flatten(3).sum((1, 3))}
    return {"weight": outer} | shifts
