"""reference_map: the literal, slow definition, against which every fast path is tested."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from fedsens._extensions import Registry
from fedsens.errors import SensitivityError
from fedsens.sensitivity._batching import Inputs, checked_batches, map_tensors, part
from fedsens.sensitivity._losses import LabelLoss, PerSample
from fedsens.sensitivity._map import SensitivityMap
from fedsens.sensitivity._parameters import select_parameters
from fedsens.sensitivity._plan import Plan, make_plan
from fedsens.sensitivity._preserve import preserved
from fedsens.sensitivity._rows import normalized
from fedsens.sensitivity._task import Forward, Sums, Task, call_model, check_finite
from fedsens.sensitivity._tolerance import UNSUPPORTED, first_line

Order = Callable[[Tensor, Tensor, list[Tensor]], list[Tensor]]
ORDERS: Registry[Order] = Registry("order", error=SensitivityError)


@ORDERS.register("label_last")
def label_last(loss: Tensor, y: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """J_m = d/dy (dL/dw_m), one element of the gradient at a time: (*parameter.shape, *y.shape)."""
    grads = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
    jacobians = []
    for grad in grads:
        rows = [_gradient(element, y) for element in grad.reshape(-1)]
        jacobians.append(torch.stack(rows).reshape(*grad.shape, *y.shape))
    return jacobians


@ORDERS.register("label_first")
def label_first(loss: Tensor, y: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """J_m = d/dw_m (dL/dy), one entry of the label at a time: (*parameter.shape, *y.shape)."""
    (by_label,) = torch.autograd.grad(loss, y, create_graph=True)
    entries = by_label.reshape(-1)
    columns = [[_gradient(entry, p) for p in parameters] for entry in entries]
    return [
        torch.stack([column[i] for column in columns], -1).reshape(*p.shape, *y.shape)
        for i, p in enumerate(parameters)
    ]


def reference_map(
    model: nn.Module,
    batches: Iterable[Any],
    loss: str | LabelLoss | PerSample = "cross_entropy",
    rule: str = "vector",
    *,
    order: str = "label_last",
    normalize_labels: bool = False,
    norm: str = "l2",
    params: Iterable[str] | None = None,
    forward: Forward | None = None,
) -> SensitivityMap:
    """The map by double automatic differentiation of its definition, in float64.

    J_m(y_k) = d/dy_k (dL(x_k, y_k; W)/dw_m) (FedML-HE, arXiv 2303.10837), element by element, on
    a float64 copy of the model. Rule ``vector`` takes its norm. Rule ``true_label`` takes
    |y_kᵀ J_m|, for a one-hot label the true class's entry; for losses that are not linear in the
    label (``binary_cross_entropy``, ``mse``, callables) it takes |dL/dw_m|.

    With ``normalize_labels`` the loss sees y / sum(y). The rule ``true_label`` is then exactly
    zero everywhere: scaling a label no longer changes anything.

    Args:
        model: the model; left as it is.
        batches: as for :func:`sensitivity_map`.
        loss: as for :func:`sensitivity_map`.
        rule: ``"vector"`` or ``"true_label"``.
        order: ``"label_last"`` (the definition; slow) or ``"label_first"``; they are equal.
        normalize_labels: divide labels by their sum inside the derivative.
        norm: ``"l2"``, ``"l1"`` or ``"linf"`` over the label vector.
        params: names to restrict the map to.
        forward: (model, inputs) -> logits.

    Returns:
        The map, float64.

    Raises:
        SensitivityError: as for :func:`sensitivity_map`.
    """
    plan = make_plan(loss, rule, "model", norm, "exact")
    value = normalized(plan.loss.value) if normalize_labels else plan.loss.value
    derivative = ORDERS[order]
    copy = _double_copy(model)
    tracked = select_parameters(copy, params)
    task = Task(copy, tracked.parameters, forward or call_model, plan)
    sums, count = task.zeros(), 0
    with preserved(copy):
        for x, y in checked_batches(batches, torch.device("cpu")):
            for k in range(len(y)):
                inputs, label = part(x, k, k + 1), y[k : k + 1]
                _add_sample(task, sums, inputs, label, value, derivative)
                count += 1
    if count == 0:
        raise SensitivityError("expected at least one sample, got empty batches")
    engines = dict.fromkeys(task.parameters, f"reference:{order}")
    meta = plan.meta | {"engines": engines, "normalize_labels": normalize_labels}
    return SensitivityMap(tracked.expand(sums), count, meta)


def _double_copy(model: nn.Module) -> nn.Module:
    """A copy in float64 on the CPU whose parameters have the model's hooks."""
    try:
        copy: nn.Module = deepcopy(model).double().cpu()
    except (RuntimeError, TypeError) as error:
        raise SensitivityError(
            f"expected a model that can be copied, got {type(model).__name__}, of which a copy "
            f"fails with {type(error).__name__}; detach or drop the tensors that it keeps, load "
            "weights that are missing, and take nn.utils.parametrizations.weight_norm for "
            "nn.utils.weight_norm",
            first_line(error),
        ) from error
    # a copied parameter loses its hooks, which change the gradients that training sends
    for mine, given in zip(copy.parameters(), model.parameters(), strict=True):
        for hook in (given._backward_hooks or {}).values():
            if mine.requires_grad:
                mine.register_hook(hook)  # type: ignore[no-untyped-call]
    return copy


def _add_sample(
    task: Task, sums: Sums, x: Inputs, y: Tensor, value: PerSample, order: Order
) -> None:
    """Add one sample's ||J_m||, one array over all of y per parameter."""
    try:
        z = task.logits(map_tensors(x, _double))[0]
    except UNSUPPORTED as error:
        raise SensitivityError(
            f"expected a model that runs on one sample in float64, got {type(error).__name__}; "
            "reference_map computes on a float64 copy: leave casts such as .float() out of forward",
            first_line(error),
        ) from error
    check_finite(z)
    loss = task.plan.loss
    label = loss.targets(tuple(z.shape), _double(y), torch.float64)[0].requires_grad_()
    parameters: list[Tensor] = list(task.parameters.values())
    try:
        if task.plan.rule == "true_label" and not loss.linear:
            norms = [_gradient(value(z, label), p).abs() for p in parameters]
        else:
            one = value(z, label)
            jacobians = order(one, label, parameters)
            if order is label_last:  # where a backward pass is no part of the graph it says zero
                _check(jacobians, label_first(one, label, parameters))
            norms = [_reduce(task.plan, j.flatten(-label.ndim), label) for j in jacobians]
    except UNSUPPORTED as error:
        raise SensitivityError(
            f"expected operators that can be differentiated, got {type(error).__name__}; "
            "order='label_first' and sensitivity_map differentiate the model once, "
            "'label_last' twice",
            first_line(error),
        ) from error
    for name, norm in zip(task.parameters, norms, strict=True):
        sums[name] += norm.detach()


def _check(last: list[Tensor], first: list[Tensor]) -> None:
    """Refuse a second derivative that depends on its order."""
    for one, other in zip(last, first, strict=True):
        if not torch.allclose(one, other, rtol=1e-6, atol=1e-6 * float(other.abs().max())):
            raise SensitivityError(
                "expected a backward pass that torch can differentiate, got one that it takes for "
                "constant (once_differentiable, detach or NumPy inside of it); take "
                "order='label_first', which differentiates the model once"
            )


def _reduce(plan: Plan, jacobian: Tensor, label: Tensor) -> Tensor:
    if plan.rule == "true_label":
        return (jacobian @ label.reshape(-1)).abs()
    norms: Tensor = torch.linalg.vector_norm(jacobian, ord=plan.norm.order, dim=-1)
    return norms


def _gradient(value: Tensor, leaf: Tensor) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(leaf)
    (grad,) = torch.autograd.grad(value, leaf, retain_graph=True, materialize_grads=True)
    return grad.to_dense() if grad.is_sparse else grad


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
