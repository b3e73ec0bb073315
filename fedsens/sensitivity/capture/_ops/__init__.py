"""The rules that come with fedsens, one file per family of operations."""

from fedsens.sensitivity.capture._ops import (
    convolution,
    elementwise,
    linear,
    normalization,
)

__all__ = [
    "convolution",
    "elementwise",
    "linear",
    "normalization",
]
