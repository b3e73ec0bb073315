"""The reference: FedAvg's mean of the honest clients in float64, and how far a model is from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedsens._files import Arrays
from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask

FLOAT32 = 4 * float(np.finfo(np.float32).eps)  # what rounding may add to a mean, relative


@dataclass(frozen=True)
class Gap:
    """The largest errors of a model.

    Attributes:
        encrypted: of its encrypted coordinates.
        bound: that they must stay within: of the codec, and of rounding to float32.
        plain: of the other coordinates.
        rounding: that these must stay within.
    """

    encrypted: float
    bound: float
    plain: float
    rounding: float

    def figures(self) -> dict[str, float]:
        """The errors, and the larger of them as a share of its bound."""
        return {
            "error": self.encrypted,
            "bound": self.bound,
            "plain error": self.plain,
            "of bound": round(max(self.encrypted / self.bound, self.plain / self.rounding), 4),
        }


def mean_of(answers: Sequence[tuple[int, Arrays]]) -> Arrays:
    """FedAvg's definition, sum of n_i w_i over sum of n_i, in float64.

    Args:
        answers: examples n_i and model w_i of every client.

    Returns:
        The mean.
    """
    total = sum(examples for examples, _ in answers)
    return {
        name: sum(
            (arrays[name].astype(np.float64) * (examples / total) for examples, arrays in answers),
            np.zeros(first.shape),
        )
        for name, first in answers[0][1].items()
    }


def largest_gap(
    model: Arrays, expected: Arrays, layout: ParameterLayout, mask: EncryptionMask, bound: float
) -> Gap:
    """Compare a model with the reference.

    Args:
        model: opened.
        expected: the reference.
        layout: of both.
        mask: what was encrypted.
        bound: on the codec's error.

    Returns:
        The largest errors; NaN counts as infinite.
    """

    def flat(arrays: Arrays) -> np.ndarray:
        parts = [np.asarray(arrays[entry.name], np.float64) for entry in layout.entries]
        return np.concatenate([part.reshape(-1) for part in parts])

    reference = flat(expected)
    gap = np.nan_to_num(np.abs(flat(model) - reference), nan=np.inf)
    rounding = FLOAT32 * float(np.abs(reference).max())
    return Gap(
        float(gap[mask.selected].max(initial=0.0)),
        bound + rounding,
        float(gap[~mask.selected].max(initial=0.0)),
        rounding,
    )
