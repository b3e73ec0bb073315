"""Losses as functions of logits and label vectors; one decorated function adds one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedsens.errors import SensitivityError
from fedsens.sensitivity.autograd_rows import autograd_rows, normalized, tangent
from fedsens.sensitivity.label_rows import LabelRows
from fedsens.sensitivity.registry import Registry
from fedsens.sensitivity.targets import free_labels

PerSample = Callable[[Tensor, Tensor], Tensor]
RowsOf = Callable[[Tensor, Tensor], LabelRows]
Targets = Callable[[tuple[int, ...], Tensor, torch.dtype], Tensor]


@dataclass(frozen=True)
class LabelLoss:
    """A loss as a function of logits and of a label vector that can be differentiated.

    Attributes:
        name: how the map's metadata call it.
        per_sample: (z, y), both with the batch first, to one loss per sample.
        targets: from the labels of a batch to floating-point label vectors.
        rows: center to the function that gives the rows of B = d2L/dy dz of one sample.
        linear: the loss is linear in the label, so that the true label's entry of the Jacobian
            is the gradient.
        tokens: each position of the logits has a label of its own.
    """

    name: str
    per_sample: PerSample
    targets: Targets
    rows: Mapping[str, RowsOf]
    linear: bool = False
    tokens: bool = False

    def value(self, z: Tensor, y: Tensor) -> Tensor:
        """The loss of one sample.

        Args:
            z: logits, without a batch axis.
            y: label vector, without a batch axis.

        Returns:
            A scalar.

        Raises:
            SensitivityError: the loss is not one value per sample.
        """
        value = self.per_sample(z[None], y[None])
        if value.numel() != 1:
            raise SensitivityError(
                f"expected the loss {self.name} to give one value per sample, got shape "
                f"{tuple(value.shape)} for 1 sample; use reduction='none' and average the rest"
            )
        return value.reshape(())


LOSSES: Registry[LabelLoss] = Registry("loss")


def register_loss(
    name: str,
    *,
    targets: Targets = free_labels,
    rows: Mapping[str, RowsOf] | None = None,
    linear: bool = False,
    tokens: bool = False,
) -> Callable[[PerSample], PerSample]:
    """Decorator that makes a loss known by name.

    Args:
        name: the string that will select it.
        targets: see :class:`LabelLoss`; by default class indices become one-hot vectors.
        rows: closed forms of B by center; by default automatic differentiation of the loss.
        linear: see :class:`LabelLoss`.
        tokens: see :class:`LabelLoss`.

    Returns:
        A decorator of ``(z, y) -> one loss per sample``; it returns the function unchanged.
    """

    def decorate(per_sample: PerSample) -> PerSample:
        loss = from_callable(per_sample, name)
        loss = replace(loss, targets=targets, rows=rows or loss.rows)
        loss = replace(loss, linear=linear, tokens=tokens)
        LOSSES.add(name, loss)
        return per_sample

    return decorate


def from_callable(per_sample: PerSample, name: str | None = None) -> LabelLoss:
    """A loss that is differentiated automatically.

    Args:
        per_sample: (z, y), both with the batch first, to one loss per sample; y is floating
            point (class indices come as one-hot vectors).
        name: its name; by default the function's.

    Returns:
        The loss, with centers ``model`` (as written), ``label`` (y divided by its sum) and
        ``uniform`` (directions that keep the sum of y).
    """
    shown = name or str(getattr(per_sample, "__qualname__", type(per_sample).__name__))
    bare = LabelLoss(shown, per_sample, free_labels, {})
    values = {
        "model": bare.value,
        "label": normalized(bare.value),
        "uniform": tangent(bare.value),
    }
    rows = {center: _rows_of(value) for center, value in values.items()}
    return replace(bare, rows=rows)


def resolve_loss(loss: str | LabelLoss | PerSample) -> LabelLoss:
    """The loss that an option names.

    Args:
        loss: a registered name, a :class:`LabelLoss`, or ``(z, y) -> one loss per sample``.

    Returns:
        The loss.
    """
    if isinstance(loss, LabelLoss):
        return loss
    if callable(loss):
        return from_callable(loss)
    return LOSSES[loss]


def _rows_of(value: PerSample) -> RowsOf:
    return lambda z, y: autograd_rows(value, z, y)
