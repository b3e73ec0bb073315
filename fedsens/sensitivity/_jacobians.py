"""Derivatives of per-sample gradients, whole: not their norms alone.

For one sample with loss L, parameters w and a tensor t that L depends on (its label, its input, the
model's output, or another tensor of the batch), J = d/dt (dL/dw) is a matrix with a row for each
parameter and a column for each entry of t. The sensitivity map of FedML-HE (arXiv 2303.10837) is
the norm of its rows for t = label; Mo et al. (arXiv 2010.08762) take norms of a layer's rows
together. Derivatives commute, so a column is d/dw (dL/dt_j): one backward pass for all parameters.

Everything here runs sample by sample with plain autograd in the model's own type, so it is right
for any module, and meant for models and batches small enough for that. Large maps:
`sensitivity_map`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedsens.errors import SensitivityError
from fedsens.sensitivity._batching import Inputs, checked_batches, part
from fedsens.sensitivity._losses import LabelLoss, PerSample
from fedsens.sensitivity._parameters import TrackedParameters, select_parameters
from fedsens.sensitivity._plan import make_plan
from fedsens.sensitivity._preserve import preserved, refuse_once_differentiable
from fedsens.sensitivity._standard_losses import resolve_loss
from fedsens.sensitivity._task import Forward, Task, call_model, check_finite

Loss = str | LabelLoss | PerSample
LABEL, INPUT, OUTPUT = "label", "input", "output"


def gradient_jacobian(
    model: nn.Module,
    batch: Any,
    loss: Loss = "cross_entropy",
    *,
    wrt: str | int = LABEL,
    params: Iterable[str] | None = None,
    forward: Forward | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """The signed Jacobian of every sample's gradient, one parameter after the other.

    ``dict(gradient_jacobian(...))`` has them all at once, for models small enough. Each parameter
    takes as many backward passes per sample as t has entries, or by the input as it has itself, if
    those are fewer. A derivative by the input differentiates the model's backward pass: what a
    ``torch.autograd.Function`` computes there outside of torch counts as a constant.

    Args:
        model: any module; it runs in eval mode and is left as it was.
        batch: inputs and labels of K samples, as for :func:`~fedsens.sensitivity_map`.
        loss: as for :func:`~fedsens.sensitivity_map`; its value for one sample is differentiated.
        wrt: t: ``"label"`` (class indices become one-hot vectors), ``"input"``, ``"output"`` (the
            logits), or the key or place of another tensor of the inputs.
        params: names to restrict it to.
        forward: (model, inputs) -> logits.

    Yields:
        Name and J = d/dt (dL/dw), (K, *parameter.shape, *t.shape).
    """
    task, tracked = gradient_task(model, loss, params, forward)
    with preserved(model):
        ((x, y),) = checked_batches([batch], task.device)
        for name, first in tracked.names.items():
            parameter = task.parameters[first]
            yield name, torch.stack([_one(s, parameter) for s in _samples(task, x, y, wrt)])


def gradient_jvp(
    model: nn.Module,
    batch: Any,
    direction: Tensor,
    loss: Loss = "cross_entropy",
    *,
    wrt: str | int = LABEL,
    params: Iterable[str] | None = None,
    forward: Forward | None = None,
) -> dict[str, Tensor]:
    """J v: how every sample's gradient changes as t moves along a direction; one pass per sample.

    Args:
        model: see :func:`gradient_jacobian`.
        batch: see :func:`gradient_jacobian`.
        direction: v, (K, *t.shape).
        loss: see :func:`gradient_jacobian`.
        wrt: see :func:`gradient_jacobian`.
        params: see :func:`gradient_jacobian`.
        forward: see :func:`gradient_jacobian`.

    Returns:
        Name to (K, *parameter.shape).
    """
    task, tracked = gradient_task(model, loss, params, forward)
    with preserved(model):
        ((x, y),) = checked_batches([batch], task.device)
        products = []
        _check_shape("directions", direction, (len(y), *direction.shape[1:]))
        for sample, v in zip(_samples(task, x, y, wrt), direction, strict=True):
            _check_shape("a direction", v, sample.target.shape)
            products.append(sample.by_parameters((sample.by_target() * v).sum()))
    stacked = {name: torch.stack([one[name] for one in products]) for name in task.parameters}
    return {name: stacked[first] for name, first in tracked.names.items()}


def gradient_vjp(
    model: nn.Module,
    batch: Any,
    weights: Mapping[str, Tensor],
    loss: Loss = "cross_entropy",
    *,
    wrt: str | int = LABEL,
    forward: Forward | None = None,
) -> Tensor:
    """Jᵀu: the derivative by t of one combination of every sample's gradient.

    Two backward passes a sample by the input; as many as t has entries by the label or the output.

    Args:
        model: see :func:`gradient_jacobian`.
        batch: see :func:`gradient_jacobian`.
        weights: u, parameter's name to a tensor of its shape; others count as zero.
        loss: see :func:`gradient_jacobian`.
        wrt: see :func:`gradient_jacobian`.
        forward: see :func:`gradient_jacobian`.

    Returns:
        (K, *t.shape).
    """
    task, tracked = gradient_task(model, loss, weights, forward)
    for name, u in weights.items():
        _check_shape(f"weights of {name}", u, task.parameters[tracked.names[name]].shape)
    with preserved(model):
        ((x, y),) = checked_batches([batch], task.device)
        pairs = [(tracked.names[name], u) for name, u in weights.items()]
        rows = []
        for sample in _samples(task, x, y, wrt):
            if sample.twice:
                total = sample.combined(sample.by_parameters(sample.value), pairs)
                refuse_once_differentiable(total)
                rows.append(_gradient(total, sample.target).detach())
            else:
                entries = [sample.combined(column, pairs) for column in sample.columns()]
                rows.append(torch.stack(entries).reshape(sample.target.shape))
    return torch.stack(rows)


def sample_norms(
    model: nn.Module,
    batch: Any,
    loss: Loss = "cross_entropy",
    *,
    wrt: str | int = LABEL,
    params: Iterable[str] | None = None,
    forward: Forward | None = None,
) -> dict[str, Tensor]:
    """||J_m|| of every sample by itself: what :func:`~fedsens.sensitivity_map` adds up.

    Args:
        model: see :func:`gradient_jacobian`.
        batch: see :func:`gradient_jacobian`.
        loss: see :func:`gradient_jacobian`.
        wrt: see :func:`gradient_jacobian`.
        params: see :func:`gradient_jacobian`.
        forward: see :func:`gradient_jacobian`.

    Returns:
        Name to L2 norms over t, (K, *parameter.shape).
    """
    task, tracked = gradient_task(model, loss, params, forward)
    norms = []
    with preserved(model):
        ((x, y),) = checked_batches([batch], task.device)
        for sample in _samples(task, x, y, wrt):
            squares = {name: torch.zeros_like(p.detach()) for name, p in task.parameters.items()}
            for column in sample.columns():
                for name, value in column.items():
                    squares[name] += value.square()
            norms.append(squares)
    return {
        name: torch.stack([one[first] for one in norms]).sqrt_()
        for name, first in tracked.names.items()
    }


def loss_gradients(loss: Loss, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """dL/dz and dL/dy of each sample's loss.

    Args:
        loss: as for :func:`~fedsens.sensitivity_map`; ``"normalized_cross_entropy"`` divides
            labels by their sum.
        z: logits, (K, ...).
        y: labels, (K, ...): class indices, which are taken for one-hot vectors, or soft labels.

    Returns:
        Both derivatives, the second in the shape of the label vectors.
    """
    _check_shape("labels", y, (len(z), *y.shape[1:]))
    resolved = resolve_loss(loss)
    label = resolved.targets(tuple(z.shape[1:]), y, z.dtype).detach()
    pairs = []
    with torch.enable_grad():
        for one, target in zip(z.detach(), label, strict=True):
            leaves = one.clone().requires_grad_(), target.clone().requires_grad_()
            value = resolved.value(*leaves)
            pairs.append(tuple(_gradient(value, leaf).detach() for leaf in leaves))
    by_logits, by_label = (torch.stack(parts) for parts in zip(*pairs, strict=True))
    return by_logits, by_label


def output_jacobian(
    model: nn.Module, inputs: Inputs, *, wrt: str | int = INPUT, forward: Forward | None = None
) -> Tensor:
    """dz/dx of each sample by itself.

    ``torch.autograd.grad(y, x, torch.ones_like(y))`` is the sum of it over the outputs, and
    ``torch.autograd.functional.jacobian`` has K times as many entries, most of them zero.

    Args:
        model: any module; it runs in eval mode and is left as it was.
        inputs: of K samples, as for :func:`~fedsens.sensitivity_map`, without labels.
        wrt: ``"input"``, or the key or place of one tensor of the inputs.
        forward: (model, inputs) -> outputs.

    Returns:
        (K, *outputs.shape[1:], *input.shape[1:]).
    """
    plan = make_plan("mse", "vector", "model", "l2", "exact")  # of no consequence here
    task = Task(model, dict(model.named_parameters()), forward or call_model, plan)
    whole = _tensor_of(inputs, wrt)
    rows = []
    with preserved(model):
        for k in range(len(whole)):
            x = part(inputs, k, k + 1)
            leaf = _tensor_of(x, wrt)[0].detach().clone().requires_grad_()
            z = task.per_sample_logits(_replaced(x, wrt, leaf[None]))[0]
            check_finite(z)
            row = [_gradient(entry, leaf).detach() for entry in z.reshape(-1)]
            rows.append(torch.stack(row).reshape(*z.shape, *leaf.shape))
    return torch.stack(rows)


@dataclass(frozen=True)
class Sample:
    """One sample's loss with its graph.

    Attributes:
        value: L.
        target: t.
        parameters: w by name.
        twice: whether dL/dt runs back through the model, which J then differentiates again.
    """

    value: Tensor
    target: Tensor
    parameters: Mapping[str, nn.Parameter]
    twice: bool

    def by_target(self) -> Tensor:
        """dL/dt, with its graph."""
        gradient = _gradient(self.value, self.target)
        if self.twice:
            refuse_once_differentiable(gradient)
        return gradient

    def by_parameters(self, value: Tensor) -> dict[str, Tensor]:
        """The derivative of a scalar by each parameter, with its graph."""
        leaves = list(self.parameters.values())
        if not value.requires_grad:
            return {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        grads = torch.autograd.grad(
            value, leaves, create_graph=True, allow_unused=True, materialize_grads=True
        )
        dense = (g.to_dense() if g.is_sparse else g for g in grads)
        return dict(zip(self.parameters, dense, strict=True))

    def combined(
        self, gradients: Mapping[str, Tensor], weights: list[tuple[str, Tensor]]
    ) -> Tensor:
        """The sum of derivatives by parameters, each times its weights."""
        products = ((gradients[name] * u).sum() for name, u in weights)
        return sum(products, self.value.new_zeros(()))

    def columns(self) -> Iterator[dict[str, Tensor]]:
        """J column by column, for all parameters together."""
        for entry in self.by_target().reshape(-1):
            yield {name: g.detach() for name, g in self.by_parameters(entry).items()}


def samples_of(task: Task, batches: Iterable[Any], wrt: str | int) -> Iterator[Sample]:
    """The samples of some batches, one by one."""
    for x, y in checked_batches(batches, task.device):
        yield from _samples(task, x, y, wrt)


def gradient_task(
    model: nn.Module, loss: Loss, params: Iterable[str] | None, forward: Forward | None
) -> tuple[Task, TrackedParameters]:
    """What engines need, and the parameters, for some options of :func:`gradient_jacobian`."""
    plan = make_plan(loss, "vector", "model", "l2", "exact")
    tracked = select_parameters(model, params)
    return Task(model, tracked.parameters, forward or call_model, plan), tracked


def _samples(task: Task, x: Inputs, y: Tensor, wrt: str | int) -> Iterator[Sample]:
    for k in range(len(y)):
        yield _sample(task, part(x, k, k + 1), y[k : k + 1], wrt)


def _sample(task: Task, x: Inputs, y: Tensor, wrt: str | int) -> Sample:
    leaf = None
    if wrt not in {LABEL, OUTPUT}:
        leaf = _tensor_of(x, wrt)[0].detach().clone().requires_grad_()
        x = _replaced(x, wrt, leaf[None])
    z = task.per_sample_logits(x)[0]
    check_finite(z)
    loss = task.plan.loss
    label = loss.targets(tuple(z.shape), y, z.dtype)[0].detach().clone()
    value = loss.value(z, label.requires_grad_(wrt == LABEL))
    target = leaf if leaf is not None else label if wrt == LABEL else z
    return Sample(value, target, task.parameters, leaf is not None)


def _check_shape(what: str, given: Tensor, shape: tuple[int, ...]) -> None:
    """Check the shape of an argument."""
    if tuple(given.shape) != tuple(shape):
        raise SensitivityError(
            f"expected {what} of shape {tuple(shape)}, got shape {tuple(given.shape)}"
        )


def _one(sample: Sample, parameter: nn.Parameter) -> Tensor:
    """J of one parameter by columns, or by rows if they are fewer and need no more than columns."""
    target = sample.target
    if sample.twice and parameter.numel() <= target.numel():
        gradient = _gradient(sample.value, parameter)
        refuse_once_differentiable(gradient)
        rows = [_gradient(entry, target).detach() for entry in gradient.reshape(-1)]
        return torch.stack(rows).reshape(*parameter.shape, *target.shape)
    columns = [_gradient(entry, parameter).detach() for entry in sample.by_target().reshape(-1)]
    return torch.stack(columns, -1).reshape(*parameter.shape, *target.shape)


def _gradient(value: Tensor, leaf: Tensor) -> Tensor:
    """The derivative of a scalar, with its graph; zeros where it does not depend on the leaf."""
    if not value.requires_grad:
        return torch.zeros_like(leaf)
    (grad,) = torch.autograd.grad(
        value, leaf, create_graph=True, retain_graph=True, allow_unused=True
    )
    if grad is None:
        return torch.zeros_like(leaf)
    return grad.to_dense() if grad.is_sparse else grad


def _tensor_of(x: Inputs, wrt: str | int) -> Tensor:
    """The tensor of the inputs that is meant, which has to be real."""
    parts = dict(x) if isinstance(x, Mapping) else x
    if isinstance(parts, Tensor):
        parts = {INPUT: parts}
    elif not isinstance(parts, dict):
        parts = dict(enumerate(parts))
    real = [key for key, v in parts.items() if isinstance(v, Tensor) and v.is_floating_point()]
    key = real[0] if wrt == INPUT and wrt not in parts and len(real) == 1 else wrt
    if key not in real:
        raise SensitivityError(
            "expected wrt='label', 'output', or one of the floating-point tensors of the inputs, "
            f"{', '.join(map(repr, real)) or 'of which there are none'}, got {wrt!r}; of integers "
            "(tokens) there is no derivative: pass their embeddings"
        )
    found: Tensor = parts[key]
    return found


def _replaced(x: Inputs, wrt: str | int, leaf: Tensor) -> Inputs:
    """The inputs with another tensor in the place of the one that is meant."""
    meant = _tensor_of(x, wrt)
    if isinstance(x, Tensor):
        return leaf
    if isinstance(x, Mapping):
        return {key: leaf if value is meant else value for key, value in x.items()}
    parts = [leaf if value is meant else value for value in x]
    return parts if isinstance(x, list) else tuple(parts)
