"""How much of images or tokens an attack has recovered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import beta
from skimage.metrics import structural_similarity
from torch import Tensor

from fedsens.audit._trial import Outcome, Trial

WINDOW = 7  # pixels, of SSIM
RESAMPLES = 2000  # of the bootstrap
CONFIDENCE = 0.95  #: of every interval that an audit reports


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


def assign_to_originals(found: Tensor, true: Tensor) -> Tensor:
    """Put reconstructions into the order of the images that they are of.

    An update does not say in which order its images came, so the assignment with the least total
    squared error counts.
    """
    if len(true) == 1:
        return found
    usable = found.nan_to_num(0.5)
    away = (usable.flatten(1)[None] - true.flatten(1)[:, None]).square().mean(dim=2)
    _, columns = linear_sum_assignment(away.numpy())
    return found[columns]


def measure_images(
    trial: Trial, found: Tensor, true: Tensor, others: Tensor, seconds: float
) -> Outcome:
    """Measure reconstructed images."""
    usable = found.nan_to_num(0.5)  # an attack that reads an encrypted coordinate ends in NaN
    pairs = list(zip(usable, true, strict=True))
    count = len(pairs)
    return Outcome(
        trial,
        sum(ssim(mine, yours) for mine, yours in pairs) / count,
        sum(identified(mine, yours, others) for mine, yours in pairs) / count,
        seconds,
    )


def prior_score(x: Tensor, y: Tensor, others_x: Tensor, others_y: Tensor) -> float:
    """SSIM of what can be said of images without their update: the mean of each one's class."""
    pairs = zip(x, y, strict=True)
    found = [
        ssim(prior_reconstruction(int(label), others_x, others_y), image) for image, label in pairs
    ]
    return sum(found) / len(found)


def prior_reconstruction(label: int, others_x: Tensor, others_y: Tensor) -> Tensor:
    """The guess at an image of a class: the mean of public images.

    Args:
        label: the class.
        others_x: public images.
        others_y: their labels.

    Returns:
        The mean of those of the class; of all where the class has none.
    """
    same = others_x[others_y == label]
    return (same if len(same) else others_x).mean(dim=0)


def recall_and_precision(found: Tensor, true: Tensor) -> tuple[float, float]:
    """Share of the true tokens that are found, and of the found ones that are true.

    Args:
        found: whether each token is taken to occur.
        true: whether it does.

    Returns:
        Recall (1 where no token is to be found) and precision (1 where none is found).
    """
    both = float((found & true).sum())
    recall = both / float(true.sum()) if true.any() else 1.0
    return recall, both / float(found.sum()) if found.any() else 1.0


def f1(found: Tensor, true: Tensor) -> float:
    """Harmonic mean of recall and precision; 0 where nothing right is found."""
    recall, precision = recall_and_precision(found, true)
    return 2 * recall * precision / (recall + precision) if recall + precision else 0.0


def occurring(tokens: Tensor, vocabulary: int) -> Tensor:
    """Which tokens occur in sentences.

    Args:
        tokens: ids of any shape.
        vocabulary: number of tokens.

    Returns:
        Booleans, (vocabulary,).
    """
    return torch.bincount(tokens.flatten(), minlength=vocabulary) > 0


def measure_tokens(
    trial: Trial, found: Tensor, true: Tensor, others: Tensor, seconds: float
) -> Outcome:
    """Measure recovered tokens.

    A sentence is told from others if a larger share of its tokens is found than of any other.
    """
    score = f1(found, occurring(true, len(found)))
    covered = found[others].double().mean(dim=1).max()
    identified_share = float((found[true].double().mean(dim=1) > covered).double().mean())
    return Outcome(trial, score, identified_share, seconds)


def prior_score_of_tokens(true: Tensor, others: Tensor, vocabulary: int) -> float:
    """F1 of naming the most frequent tokens of public sentences, as many as there are."""
    wanted = occurring(true, vocabulary)
    likely = torch.bincount(others.flatten(), minlength=vocabulary).argsort(descending=True)
    named = torch.zeros(vocabulary, dtype=torch.bool)
    named[likely[: int(wanted.sum())]] = True
    return f1(named, wanted)


def share_bounds(found: float, tried: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """How small and how large a share may be of which so many were seen, each one-sided.

    Clopper and Pearson 1934: from 0.05 for one of one, up to 0.31 for none of 8, 0.05 for none of
    64. The lower bound also holds where the first success ended the trials.
    """
    least, most = math.floor(found + 1e-9), math.ceil(found - 1e-9)
    low = float(beta.ppf(1 - confidence, least, tried - least + 1)) if least else 0.0
    return low, float(beta.ppf(confidence, most + 1, tried - most)) if most < tried else 1.0
