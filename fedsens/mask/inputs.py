"""Checks of what a policy is given: the right length, and numbers that can be ranked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedsens.errors import MaskError
from fedsens.layout import ParameterLayout
from fedsens.mask.registry import Need


class FlatMap(Protocol):
    """A map over named parameters that can be laid out flat, such as a SensitivityMap."""

    def flat(self, layout: ParameterLayout) -> Any:
        """The scores in the layout's order, as an array of length P."""


def checked_scores(smap: FlatMap | NDArray[Any], layout: ParameterLayout) -> NDArray[Any]:
    """The scores of a map in the layout's order.

    Args:
        smap: a map, or an array of P scores.
        layout: the model's layout, of P coordinates.

    Returns:
        Read-only vector of P finite scores that are at least 0.

    Raises:
        MaskError: the scores have another length, or are NaN, infinite or negative.
    """
    scores = _checked(smap if isinstance(smap, np.ndarray) else smap.flat(layout), layout, "scores")
    if scores.size and scores.min() < 0:
        name = layout.name_of(int(scores.argmin()))
        raise MaskError(
            f"expected scores of at least 0, got a negative one in {name}; "
            "pass a map of norms, or clip what decryption noise has made negative"
        )
    return scores


def checked_weights(weights: NDArray[Any], layout: ParameterLayout) -> NDArray[Any]:
    """Parameter values in the layout's order.

    Args:
        weights: P values, such as ``layout.flatten(state)``.
        layout: the model's layout, of P coordinates.

    Returns:
        Read-only vector of P finite values.
    """
    return _checked(weights, layout, "weights")


def _checked(values: Any, layout: ParameterLayout, what: str) -> NDArray[Any]:
    array = np.asarray(values).view()
    if array.shape != (layout.size,) or array.dtype.kind != "f":
        raise MaskError(
            f"expected a vector of {layout.size} floating-point {what}, got {array.dtype}"
            f"{list(array.shape)}; lay them out with the model's layout"
        )
    # The extremes are NaN if any value is: two passes, without a temporary as long as the model.
    if array.size and not np.isfinite([array.min(), array.max()]).all():
        name = layout.name_of(int(np.argmin(np.isfinite(array))))
        raise MaskError(
            f"expected finite {what}, got NaN or infinity in {name}; "
            "look for a diverged model or a loss that overflows"
        )
    array.flags.writeable = False
    return array


CHECKS: dict[Need, Callable[[Any, ParameterLayout], NDArray[Any]]] = {
    "scores": checked_scores,
    "weights": checked_weights,
}
