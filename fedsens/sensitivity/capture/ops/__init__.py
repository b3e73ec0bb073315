"""The rules that come with fedsens, one file per kind of operation."""

from fedsens.sensitivity.capture.ops import (
    convolution,
    elementwise,
    embedding,
    linear,
    normalization,
    prelu,
    transposed_convolution,
)

__all__ = [
    "convolution",
    "elementwise",
    "embedding",
    "linear",
    "normalization",
    "prelu",
    "transposed_convolution",
]
