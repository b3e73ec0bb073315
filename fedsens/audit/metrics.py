"""How much of an image an attack has recovered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

WINDOW = 7  # pixels, of SSIM
RESAMPLES = 2000  # of the bootstrap
CONFIDENCE = 0.95


def ssim(found: Tensor, true: Tensor) -> float:
    """Structural similarity (Wang et al. 2004) as scikit-image computes it.

    Uniform windows of 7 x 7 pixels, a data range of 1, mean over channels; libraries differ.

    Args:
        found: an image (channels, height, width), values in [0, 1].
        true: the image that was attacked.

    Returns:
        At most 1, which means equal.
    """
    return float(
        structural_similarity(
            true.numpy(), found.numpy(), win_size=WINDOW, data_range=1.0, channel_axis=0
        )
    )


def psnr(found: Tensor, true: Tensor) -> float:
    """Peak signal-to-noise ratio in decibels, for a data range of 1; at most 100.

    Args:
        found: an image, values in [0, 1].
        true: the image that was attacked.

    Returns:
        The ratio.
    """
    if (found - true).square().mean() < 1e-10:
        return 100.0
    return float(peak_signal_noise_ratio(true.numpy(), found.numpy(), data_range=1.0))


def identified(found: Tensor, true: Tensor, others: Tensor) -> bool:
    """Whether the nearest candidate, by mean squared error, is the image that was attacked.

    Args:
        found: an image.
        true: the image that was attacked.
        others: further candidates, of shape (n, channels, height, width).

    Returns:
        Whether the true image is nearer than every other.
    """
    nearest = (others - found).square().flatten(1).mean(dim=1).min()
    return bool((true - found).square().mean() < nearest)


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval."""

    mean: float
    low: float
    high: float


def interval(values: Sequence[float], seed: int = 0, confidence: float = CONFIDENCE) -> Interval:
    """Mean of independent values with a percentile bootstrap interval.

    Args:
        values: at least one.
        seed: of the bootstrap.
        confidence: of the interval, two-sided.

    Returns:
        The interval.
    """
    array: NDArray[np.float64] = np.asarray(values, float)
    drawn = np.random.default_rng(seed).choice(array, (RESAMPLES, array.size))
    low, high = np.quantile(drawn.mean(axis=1), ((1 - confidence) / 2, (1 + confidence) / 2))
    return Interval(float(array.mean()), float(low), float(high))
