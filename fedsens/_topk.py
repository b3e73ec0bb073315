"""Which k of many coordinates: the number a ratio stands for, and the k largest values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsens.errors import ConfigurationError, MaskError

CHUNK = 1 << 20


def mask_count(ratio: float, size: int) -> int:
    """k, the number of coordinates that a ratio stands for.

    The largest integer not above ``ratio * size``, where the product counts as the integer it
    would be without rounding: 0.29 of 100 is 29, and a mask's own ratio gives its own k.

    Args:
        ratio: in [0, 1].
        size: P.

    Returns:
        k in ``[0, size]``.

    Raises:
        ConfigurationError: the ratio is outside [0, 1] or not a number.
    """
    if not 0 <= ratio <= 1:
        raise ConfigurationError(f"expected a ratio in [0, 1], got {ratio}; use 0.1 for 10 %")
    product = float(ratio) * size
    nearest = round(product)
    return nearest if math.isclose(product, nearest, rel_tol=1e-15) else math.floor(product)


def top_k(scores: NDArray[Any], k: int) -> NDArray[np.bool_]:
    """Select the k largest values, the lower index first among equal ones.

    Linear in the length: it partitions a copy around the k-th largest value instead of sorting.
    Needs that one copy and the result.

    Args:
        scores: vector of real numbers without NaN.
        k: how many to select, in ``[0, len(scores)]``.

    Returns:
        Boolean vector with exactly k true entries.

    Raises:
        MaskError: k is negative or larger than the vector.
    """
    if not 0 <= k <= scores.size:
        raise MaskError(f"expected k in [0, {scores.size}], got {k}; choose fewer coordinates")
    if k == 0:
        return np.zeros(scores.size, np.bool_)
    # Whatever is above the k-th largest value is taken, and of its equals as many as are missing.
    threshold = np.partition(scores, scores.size - k)[scores.size - k]
    selected: NDArray[np.bool_] = scores > threshold
    _select_ties(selected, scores, threshold, k - int(np.count_nonzero(selected)))
    return selected


def _select_ties(
    selected: NDArray[np.bool_], scores: NDArray[Any], threshold: Any, missing: int
) -> None:
    # In chunks: a map of dead units is mostly ties, whose indices would outweigh the map itself.
    for start in range(0, scores.size, CHUNK):
        ties = np.flatnonzero(scores[start : start + CHUNK] == threshold)[:missing]
        selected[start + ties] = True
        missing -= ties.size
        if missing == 0:
            return
