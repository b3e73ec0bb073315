"""Images as the coefficients of cosines, scaled so that those of natural images are alike in size.

Amplitudes of natural images fall with the spatial frequency f about as 1 / f (Field 1987). In
coefficients that are divided by that, coarse and fine structure have the same scale, and L-BFGS
needs a fraction of the steps that it needs in pixels.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

KNEE = 4.0  # below so many half-periods across the image amplitudes are taken as equal
GREY = 0.5
ROUGH = 0.1  # standard deviation of a random start's coefficients


def image_of(coefficients: Tensor) -> Tensor:
    """The images of coefficients (..., height, width), 0 being grey; not limited to [0, 1].

    The orthonormal inverse cosine transform of the coefficients times 1 / (1 + f / 4), plus 0.5.
    """
    scale, rows, columns = _basis(*coefficients.shape[-2:])
    return GREY + rows.T @ (scale * coefficients) @ columns


def coefficients_of(images: Tensor) -> Tensor:
    """The inverse of ``image_of``, in double precision."""
    scale, rows, columns = _basis(*images.shape[-2:])
    return (rows @ (images - GREY) @ columns.T) / scale


def gradient_by_coefficients(by_pixels: Tensor) -> Tensor:
    """The chain rule through ``image_of``: from the derivative by pixels that by coefficients."""
    scale, rows, columns = _basis(*by_pixels.shape[-2:])
    return scale * (rows @ by_pixels @ columns.T)


def random_coefficients(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Coefficients (..., height, width) of a random smooth image near grey, in double precision."""
    return ROUGH * torch.randn(shape, generator=generator).double()


@lru_cache(maxsize=8)
def _basis(height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = _cosines(height), _cosines(width)
    frequency = torch.hypot(torch.arange(height)[:, None].double(), torch.arange(width).double())
    return 1 / (1 + frequency / KNEE), rows, columns


def _cosines(size: int) -> Tensor:
    """The orthonormal matrix of the DCT-II."""
    index = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * (index + 0.5) * index[:, None]) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix
