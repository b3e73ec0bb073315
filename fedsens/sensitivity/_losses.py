"""Losses as functions of logits and label vectors; one decorated function adds one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedsens._extensions import Registry
from fedsens.errors import SensitivityError
from fedsens.sensitivity._rows import LabelRows, autograd_rows, normalized, tangent
from fedsens.sensitivity._targets import free_labels
from fedsens.sensitivity._tolerance import UNSUPPORTED, first_line

# logits at which a loss's derivatives by the label are looked at: a hinge is flat at some
TRIED_LOGITS = 8
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
        closed: ``rows`` are closed forms, which cost nothing to ask for their number.
    """

    name: str
    per_sample: PerSample
    targets: Targets
    rows: Mapping[str, RowsOf]
    linear: bool = False
    tokens: bool = False
    closed: bool = False

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
        if not isinstance(value, Tensor) or value.numel() != 1:
            if not isinstance(value, Tensor):
                raise SensitivityError(
                    f"expected the loss {self.name} to return a tensor, got {type(value).__name__}"
                )
            raise SensitivityError(
                f"expected the loss {self.name} to give one value per sample, got shape "
                f"{tuple(value.shape)} for 1 sample; use reduction='none' and average the rest"
            )
        return value.reshape(())


LOSSES: Registry[LabelLoss] = Registry("loss", "fedsens.losses", SensitivityError)


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
        loss = replace(loss, targets=targets, rows=rows or loss.rows, closed=rows is not None)
        loss = replace(loss, linear=linear, tokens=tokens)
        LOSSES.add(name, loss, per_sample)
        return per_sample

    return decorate


def from_callable(per_sample: PerSample, name: str | None = None) -> LabelLoss:
    """A loss that is differentiated automatically; named like its function by default.

    ``per_sample`` takes (z, y), both with the batch first, and gives one loss per sample; y is
    floating point, class indices come as one-hot vectors.
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


def _rows_of(value: PerSample) -> RowsOf:
    return lambda z, y: autograd_rows(value, z, y)


def check_label(loss: LabelLoss, rule: str, shape: tuple[int, ...], y: Tensor) -> None:
    """Check that a loss can be computed, and that its label matters.

    Args:
        loss: a loss without closed form.
        rule: the map's rule.
        shape: shape of the logits without batch axis.
        y: any label vector without batch axis, in the rows' type.

    Raises:
        SensitivityError: the loss raises, does not use its label, or has derivatives that do not
            depend on it, so that a map would be zero everywhere.
    """
    generator = torch.Generator().manual_seed(0)
    mattered, used = False, False
    for _ in range(TRIED_LOGITS):
        z = torch.randn(shape, generator=generator, dtype=y.dtype).to(y.device)
        z = _admissible(loss, z, y).requires_grad_()
        if rule != "vector":  # the label need not be differentiable
            # another label of the same kind: probabilities stay probabilities
            other = torch.where((y < 0) | (y > 1), y + 1, (y < 0.5).to(y.dtype))
            mattered |= bool((_tried(loss, z, y) != _tried(loss, z, other)).any())
            continue
        label = y.detach().clone().requires_grad_()
        value = _tried(loss, z, label)
        by_label, by_logits = _gradients(value, [label, z])
        used |= by_label is not None and bool(by_label.any())
        if by_logits is not None and by_logits.requires_grad:
            direction = torch.randn(z.shape, generator=generator, dtype=z.dtype).to(z.device)
            (mixed,) = _gradients((by_logits * direction).sum(), [label])
            mattered |= mixed is not None and bool(mixed.any())
    if mattered:
        return
    if used:
        raise SensitivityError(
            f"expected a loss whose gradient changes with its label, got {loss.name}, whose "
            "d2L/dy dz is zero: its vector map would be zero everywhere; use rule='true_label', "
            "which is |dL/dw|"
        )
    raise SensitivityError(
        f"expected a loss that uses its label, got {loss.name}, whose derivative by the label is "
        "zero or does not exist; it gets (z, y) with y a vector of floating-point numbers (class "
        "indices as one-hot vectors), and has to compute with them"
    )


def _admissible(loss: LabelLoss, z: Tensor, y: Tensor) -> Tensor:
    """Logits that the loss takes: some, such as ``nn.BCELoss``, take probabilities only."""
    try:
        loss.value(z, y)
    except UNSUPPORTED:
        return torch.sigmoid(z)
    return z


def _tried(loss: LabelLoss, z: Tensor, y: Tensor) -> Tensor:
    try:
        with warnings.catch_warnings():
            # a loss may look at numbers that have a graph; torch warns of each
            warnings.filterwarnings("ignore", "Converting a tensor with requires_grad")
            return loss.value(z, y)
    except UNSUPPORTED as error:
        raise SensitivityError(
            f"expected a loss that takes logits of shape {tuple(z[None].shape)} and labels of "
            f"shape {tuple(y[None].shape)} and {y.dtype}, got {type(error).__name__} from "
            f"{loss.name}; class indices come as one-hot vectors. Torch's own losses "
            "(nn.CrossEntropyLoss(), nn.NLLLoss(), nn.BCEWithLogitsLoss(), ...) can be passed as "
            "they are",
            first_line(error),
        ) from error


def _gradients(value: Tensor, leaves: list[Tensor]) -> tuple[Tensor | None, ...]:
    if not value.requires_grad:
        return (None,) * len(leaves)
    return torch.autograd.grad(
        value, leaves, create_graph=True, retain_graph=True, allow_unused=True
    )
