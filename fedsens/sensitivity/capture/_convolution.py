"""Convolutions in one, two and three dimensions, with groups, strides, padding and dilation."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from fedsens.sensitivity.capture._registry import Cotangent, Gradients, Outer, register_op

Sizes = int | tuple[int, ...]


@register_op(torch.conv1d, torch.conv2d, torch.conv3d)
def convolution(
    cotangent: Cotangent,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Gradients:
    """A convolution is a linear map of windows: G_W = sum_t d_t window_tᵀ."""
    kernel = tuple(weight.shape[2:])
    d = channels(cotangent.value, groups)

    def unfolded(part: slice) -> Tensor:
        x = cotangent.samples(input)[part]
        return windows(x, kernel, stride, padding, dilation, groups)

    def fit(w: Tensor) -> Tensor:
        return w.view(groups, w.shape[0] // groups, -1)

    outer = Outer(d, unfolded, fit)
    return {"weight": outer} | ({} if bias is None else {"bias": d.sum(-1).flatten(1)})


def channels(tensor: Tensor, groups: int) -> Tensor:
    """From (K, frames, channels, *positions) to (K, groups, channels / groups, T), T over both."""
    maps = tensor.flatten(3) if tensor.shape[1] == 1 else tensor.flatten(3).transpose(1, 2)
    return maps.reshape(len(tensor), groups, tensor.shape[2] // groups, -1)


def windows(
    x: Tensor,
    kernel: tuple[int, ...],
    stride: Sizes,
    padding: Sizes | str,
    dilation: Sizes,
    groups: int,
) -> Tensor:
    """What a convolution sees at each position of its output (im2col).

    From (K, frames, channels, *positions) to (K, groups, channels / groups * prod(kernel), T). The
    padding may be ``"same"`` or ``"valid"``, as that of the convolution.
    """
    axes = len(kernel)
    steps, holes = on_each_axis(stride, axes), on_each_axis(dilation, axes)
    x = functional.pad(x, _margins(padding, kernel, holes))
    samples, frames, channel = x.shape[:3]
    sizes = [
        (size - hole * (k - 1) - 1) // step + 1
        for size, k, step, hole in zip(x.shape[3:], kernel, steps, holes, strict=True)
    ]
    strides = x.stride()
    spatial = strides[3:]
    view = x.as_strided(
        (samples, channel, *kernel, frames, *sizes),
        (
            strides[0],
            strides[2],
            *(s * hole for s, hole in zip(spatial, holes, strict=True)),
            strides[1],
            *(s * step for s, step in zip(spatial, steps, strict=True)),
        ),
        x.storage_offset(),
    )
    return view.reshape(samples, groups, channel // groups * prod(kernel), -1)


def on_each_axis(value: Sizes, axes: int) -> tuple[int, ...]:
    """One number for each axis."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * axes if len(values) == 1 else values


def _margins(padding: Sizes | str, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> list[int]:
    """Padding as ``functional.pad`` takes it: the last axis first, both ends."""
    ends = []
    for axis in reversed(range(len(kernel))):
        if padding == "same":
            total = dilation[axis] * (kernel[axis] - 1)
            ends += [total // 2, total - total // 2]
        elif padding == "valid":
            ends += [0, 0]
        else:
            assert not isinstance(padding, str)
            ends += [on_each_axis(padding, len(kernel))[axis]] * 2
    return ends


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
