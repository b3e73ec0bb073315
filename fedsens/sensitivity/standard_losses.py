"""The losses that are known by name, with their closed forms of B = d2L/dy dz.

The loss of a sample is what torch's function of that name returns for the sample alone with its
default reduction, so mean over tokens, labels or outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax

from fedsens.errors import SensitivityError
from fedsens.sensitivity.label_jacobian import LabelRows, diagonal_rows, label_total, softmax_rows
from fedsens.sensitivity.losses import LOSSES, LabelLoss, RowsOf, register_loss
from fedsens.sensitivity.targets import class_probabilities, same_shape, token_probabilities


def smoothed_cross_entropy(label_smoothing: float) -> LabelLoss:
    """Cross-entropy of smoothed labels, (1 - e) y + e / C.

    The map is with respect to the smoothed label. With respect to the label before smoothing
    the vector rule's values are (1 - e) times these, so the order of the parameters is the same.

    Args:
        label_smoothing: e, from 0 to below 1.

    Returns:
        The loss, to be passed as ``loss=``.

    Raises:
        SensitivityError: the value is outside [0, 1).
    """
    if not 0 <= label_smoothing < 1:
        raise SensitivityError(f"expected a label smoothing in [0, 1), got {label_smoothing!r}")

    def targets(shape: tuple[int, ...], y: Tensor, dtype: torch.dtype) -> Tensor:
        hard = class_probabilities(shape, y, dtype)
        return (1 - label_smoothing) * hard + label_smoothing / shape[-1]

    name = f"cross_entropy(label_smoothing={label_smoothing})"
    return replace(LOSSES["cross_entropy"], name=name, targets=targets)


def _position_weights(y: Tensor) -> Tensor:
    counted = (y != 0).any(-1).to(y.dtype)
    return counted / counted.sum().clamp(min=1)


def _model_center(z: Tensor, y: Tensor) -> LabelRows:
    return softmax_rows(z, torch.softmax(z, -1), _position_weights(y))


def _label_center(z: Tensor, y: Tensor) -> LabelRows:
    total = label_total(y)
    return softmax_rows(z, y / total, _position_weights(y) / total[..., 0])


def _uniform_center(z: Tensor, y: Tensor) -> LabelRows:
    return softmax_rows(z, torch.full_like(z, 1 / z.shape[-1]), _position_weights(y))


def _no_center(z: Tensor, y: Tensor) -> LabelRows:
    weights = _position_weights(y)[..., None]
    return LabelRows(z.numel(), lambda u: -weights * u.reshape(-1, *z.shape), z)


SOFTMAX_CENTERS: Mapping[str, RowsOf] = {
    "model": _model_center,
    "label": _label_center,
    "uniform": _uniform_center,
    "none": _no_center,
}


@register_loss("cross_entropy", targets=class_probabilities, rows=SOFTMAX_CENTERS, linear=True)
def _cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    return -(y * log_softmax(z, -1)).sum(-1)


@register_loss(
    "normalized_cross_entropy",
    targets=class_probabilities,
    rows={"model": _label_center},
)
def _normalized_cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    # as a function of y / sum(y): what center="label" makes of "cross_entropy"
    return -(y / label_total(y) * log_softmax(z, -1)).sum(-1)


@register_loss(
    "token_cross_entropy",
    targets=token_probabilities,
    rows=SOFTMAX_CENTERS,
    linear=True,
    tokens=True,
)
def _token_cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    # an ignored position must not count in the derivative by its label either
    counted = (y.detach() != 0).any(-1).to(y.dtype)
    per_position = -(y * log_softmax(z, -1)).sum(-1) * counted
    samples = len(y)
    total = counted.reshape(samples, -1).sum(1).clamp(min=1)
    return per_position.reshape(samples, -1).sum(1) / total


@register_loss(
    "binary_cross_entropy",
    targets=same_shape,
    rows={"model": lambda z, y: diagonal_rows(-1 / prod(z.shape), z)},
)
def _binary_cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(z, y, reduction="none").flatten(1).mean(1)


@register_loss(
    "mse",
    targets=same_shape,
    rows={"model": lambda z, y: diagonal_rows(-2 / prod(z.shape), z)},
)
def _mse(z: Tensor, y: Tensor) -> Tensor:
    return (z - y).square().flatten(1).mean(1)
