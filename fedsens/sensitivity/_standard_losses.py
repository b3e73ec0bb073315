"""The losses that are known by name, and torch's own, with their closed forms of B = d2L/dy dz.

The loss of a sample is what torch's function or module gives for that sample alone: mean over
tokens, labels or outputs, and of a module its class axis (the second), ``ignore_index``, class
weights, label smoothing and reduction. With ``reduction="mean"`` and class weights torch divides by
the weights of the labels, so for one label per sample they cancel; with ``"sum"`` they do not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax

from fedsens.errors import SensitivityError
from fedsens.sensitivity._losses import (
    LOSSES,
    LabelLoss,
    PerSample,
    RowsOf,
    from_callable,
    register_loss,
)
from fedsens.sensitivity._rows import (
    LabelRows,
    autograd_rows,
    diagonal_rows,
    label_total,
    softmax_rows,
)
from fedsens.sensitivity._targets import (
    class_probabilities,
    class_second,
    same_shape,
    token_probabilities,
)


def resolve_loss(loss: str | LabelLoss | PerSample) -> LabelLoss:
    """The loss that an option names, is, or computes as ``(z, y) -> one loss per sample``."""
    if isinstance(loss, LabelLoss):
        return loss
    return torch_loss(loss) or from_callable(loss) if callable(loss) else LOSSES[loss]


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


FUNCTIONS: Mapping[Any, Callable[[], nn.Module]] = {
    functional.cross_entropy: nn.CrossEntropyLoss,
    functional.nll_loss: nn.NLLLoss,
    functional.mse_loss: nn.MSELoss,
    functional.l1_loss: nn.L1Loss,
    functional.smooth_l1_loss: nn.SmoothL1Loss,
    functional.huber_loss: nn.HuberLoss,
    functional.binary_cross_entropy: nn.BCELoss,
    functional.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    functional.kl_div: nn.KLDivLoss,
    functional.poisson_nll_loss: nn.PoissonNLLLoss,
    functional.soft_margin_loss: nn.SoftMarginLoss,
}
ELEMENTWISE = (
    nn.MSELoss,
    nn.L1Loss,
    nn.SmoothL1Loss,
    nn.HuberLoss,
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
    nn.KLDivLoss,
    nn.PoissonNLLLoss,
    nn.SoftMarginLoss,
    nn.MultiLabelSoftMarginLoss,
)


def torch_loss(loss: Any) -> LabelLoss | None:
    """The loss that one of torch's modules or functions is."""
    module: Any = FUNCTIONS[loss]() if _is_known(loss) else loss
    if type(module) in {nn.CrossEntropyLoss, nn.NLLLoss}:
        return _classification(module)
    if type(module) in ELEMENTWISE:
        return _elementwise(module)
    return None


def _is_known(loss: Any) -> bool:
    return not isinstance(loss, nn.Module) and any(loss is known for known in FUNCTIONS)


class _Classes:
    """Cross-entropy or negative log-likelihood, the classes on the second axis."""

    def __init__(self, module: nn.CrossEntropyLoss | nn.NLLLoss) -> None:
        self.softmax = isinstance(module, nn.CrossEntropyLoss)
        self.smoothing = float(getattr(module, "label_smoothing", 0.0))
        self.weight, self.mean = module.weight, module.reduction == "mean"
        self.ignore = module.ignore_index
        self.each = module.reduction == "none"

    def targets(self, shape: tuple[int, ...], y: Tensor, dtype: torch.dtype) -> Tensor:
        """One-hot vectors or probabilities on the second axis, zero where ignored."""
        if self.each and len(shape) > 1:
            raise SensitivityError(
                "expected a loss with reduction='mean' or 'sum' for several labels per sample, got "
                "reduction='none'; which mean training takes of them is not known"
            )
        if y.is_floating_point():
            self._check_probabilities(shape, y)
        return class_second(shape, y, dtype, self.ignore)

    def _check_probabilities(self, shape: tuple[int, ...], y: Tensor) -> None:
        """Check that probabilities are not taken for class indices, whose mean is another one."""
        if tuple(y.shape[1:]) != tuple(shape):
            return  # which is said where they are read
        if not bool((y != 0).any(1).all()):
            raise SensitivityError(
                "expected probabilities with a value above 0 at every label, got some that are all "
                "zero, which torch's mean counts; pass class indices and ignore_index to leave "
                "labels out"
            )
        if self.mean and self.weight is not None and bool(((y == 0) | (y == 1)).all(1).any()):
            raise SensitivityError(
                "expected class indices, or soft labels, with class weights, got one-hot vectors "
                "of floating-point numbers, whose weights torch does not divide by; pass "
                "y.argmax(1) for what training with indices does, or reduction='sum' for what "
                "training with these vectors does, up to the number of labels of a sample"
            )

    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        """The loss of each sample."""
        log_p = torch.log_softmax(z, 1) if self.softmax else z
        counted = (y.detach() != 0).any(1)
        classes = z.shape[1]
        smooth = y * (1 - self.smoothing) + self.smoothing / classes
        each = -(self._weights(z) * smooth * log_p).sum(1) * counted
        return each.reshape(len(z), -1).sum(1) / self._total(z, y.detach(), counted)

    def rows(self, z: Tensor, y: Tensor) -> LabelRows:
        """B = d2L/dy dz of one sample, z of shape (C, *positions)."""
        counted = (y != 0).any(0).to(z.dtype)
        total = self._total(z[None], y[None], counted[None])[0]
        scale = counted * (1 - self.smoothing) / total
        last = z.movedim(0, -1)
        if self.weight is not None:
            return self._weighted_rows(z, scale)
        if self.softmax:
            return _class_second(softmax_rows(last, torch.softmax(last, -1), scale), z)
        mixing = torch.zeros_like(last), scale
        plain = LabelRows(z.numel(), lambda u: -scale * u.reshape(-1, *z.shape), z)
        return LabelRows(plain.count, plain.apply, z, None, mixing if z.ndim == 1 else None)

    def _weighted_rows(self, z: Tensor, scale: Tensor) -> LabelRows:
        weights = self._weights(z[None])[0]
        p = torch.softmax(z, 0)

        def apply(u: Tensor) -> Tensor:
            weighted = u.reshape(-1, *z.shape) * weights
            mixed = weighted.sum(1, keepdim=True) * p if self.softmax else 0
            return (mixed - weighted) * scale

        return LabelRows(z.numel(), apply, z)

    def _weights(self, z: Tensor) -> Tensor:
        """Class weights, (1, C, 1, ...)."""
        one = torch.ones(z.shape[1], device=z.device) if self.weight is None else self.weight
        return one.to(z.device, z.dtype).view(1, -1, *(1,) * (z.ndim - 2))

    def _total(self, z: Tensor, y: Tensor, counted: Tensor) -> Tensor:
        """What each sample's sum is divided by, (K,)."""
        count = counted.reshape(len(z), -1).to(z.dtype).sum(1).clamp(min=1)
        if not self.mean:
            return torch.ones_like(count)
        if self.weight is None:
            return count
        weighed = (self._weights(z) * y).reshape(len(z), -1).sum(1)
        hard = ((y == 0) | (y == 1)).reshape(len(z), -1).all(1)
        return torch.where(hard & (weighed > 0), weighed, count)


def _classification(module: nn.CrossEntropyLoss | nn.NLLLoss) -> LabelLoss:
    loss = _Classes(module)
    return LabelLoss(
        repr(module),
        loss,
        loss.targets,
        {"model": loss.rows},
        linear=loss.smoothing == 0,
        closed=True,
    )


def _elementwise(module: nn.Module) -> LabelLoss:
    rows: RowsOf | None = None
    whole = {"mean": True, "sum": False}.get(getattr(module, "reduction", ""))
    plain = getattr(module, "weight", None) is None and getattr(module, "pos_weight", None) is None
    factor = {nn.MSELoss: -2.0, nn.BCEWithLogitsLoss: -1.0}.get(type(module))
    if factor is not None and whole is not None and plain:

        def rows(z: Tensor, y: Tensor) -> LabelRows:
            return diagonal_rows(factor / (z.numel() if whole else 1), z)

    closed = rows is not None
    bare = LabelLoss(repr(module), module, same_shape, {}, closed=closed)
    derived = rows or (lambda z, y: autograd_rows(bare.value, z, y))
    return LabelLoss(repr(module), module, same_shape, {"model": derived}, closed=closed)


def _class_second(rows: LabelRows, z: Tensor) -> LabelRows:
    """Rows of logits (*positions, C) as rows of logits (C, *positions)."""
    if z.ndim == 1:
        return rows

    def apply(weights: Tensor) -> Tensor:
        u = weights.reshape(-1, *z.shape).movedim(1, -1)
        return rows.apply(u.flatten(1)).movedim(-1, 1)

    reduced = rows.reduced
    fewer = None
    if reduced is not None:
        fewer = LabelRows(reduced.count, lambda u: reduced.apply(u).movedim(-1, 1), z)
    return LabelRows(rows.count, apply, z, fewer)
