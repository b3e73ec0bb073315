"""A reconstruction beside the truth."""

from __future__ import annotations

from scipy.optimize import linear_sum_assignment
from torch import Tensor

from fedsens.audit.metrics import identified, psnr, ssim
from fedsens.audit.trial import Outcome, Trial


def in_order(found: Tensor, true: Tensor) -> Tensor:
    """Put reconstructions into the order of the images that they are of.

    An update does not say in which order its images came, so the assignment with the least total
    squared error counts.

    Args:
        found: reconstructions, of shape (n, channels, height, width).
        true: as many images.

    Returns:
        The reconstructions.
    """
    if len(true) == 1:
        return found
    usable = found.nan_to_num(0.5)
    away = (usable.flatten(1)[None] - true.flatten(1)[:, None]).square().mean(dim=2)
    _, columns = linear_sum_assignment(away.numpy())
    return found[columns]


def judge(trial: Trial, found: Tensor, true: Tensor, others: Tensor, seconds: float) -> Outcome:
    """Measure reconstructions.

    Args:
        trial: that they are of.
        found: in the order of the images.
        true: the images that were attacked.
        others: candidates that were not.
        seconds: of CPU time that it took.

    Returns:
        The outcome, the mean over the images.
    """
    usable = found.nan_to_num(0.5)  # an attack that reads an encrypted coordinate ends in NaN
    pairs = list(zip(usable, true, strict=True))
    count = len(pairs)
    return Outcome(
        trial,
        sum(ssim(mine, yours) for mine, yours in pairs) / count,
        sum(psnr(mine, yours) for mine, yours in pairs) / count,
        sum(identified(mine, yours, others) for mine, yours in pairs) / count,
        seconds,
    )


def guess(x: Tensor, y: Tensor, others_x: Tensor, others_y: Tensor) -> float:
    """SSIM of what can be said of images without their update: the mean of each one's class.

    Args:
        x: the images.
        y: their labels.
        others_x: public images.
        others_y: their labels.

    Returns:
        The mean over the images.
    """
    pairs = zip(x, y, strict=True)
    found = [ssim(class_mean(int(label), others_x, others_y), image) for image, label in pairs]
    return sum(found) / len(found)


def class_mean(label: int, others_x: Tensor, others_y: Tensor) -> Tensor:
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
