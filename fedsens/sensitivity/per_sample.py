"""Engines, which pull rows back to the parameters, and the one that is right for any module.

An engine takes a task, the sums so far, and the inputs, label vectors and probes of some samples,
and adds to the sums what these samples add: for each parameter of the task the norm over rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fedsens.errors import SensitivityError
from fedsens.extensions import Registry
from fedsens.sensitivity.batching import Inputs, part
from fedsens.sensitivity.label_jacobian import LabelRows
from fedsens.sensitivity.norms import Norm
from fedsens.sensitivity.task import Sums, Task, check_finite, wide

Engine = Callable[[Task, Sums, Inputs, Tensor, Tensor | None], None]
ENGINES: Registry[Engine] = Registry("engine", error=SensitivityError)

Pull = Callable[[Tensor, bool], dict[str, Tensor]]


def fold_rows(rows: LabelRows, pull: Pull, norm: Norm) -> dict[str, Tensor]:
    """Accumulate a sample's gradients over rows, holding one row at a time.

    Args:
        rows: cotangents of the logits.
        pull: cotangent, and whether it is the last one, to gradients by name.
        norm: the norm.

    Returns:
        Name to what :func:`finisher` turns into the norm, in the parameter's shape; parameters
        without a gradient are left out.
    """
    if rows.count == 1:
        return pull(rows.row(0), True)
    folded: dict[str, Tensor] = {}
    for index in range(rows.count):
        for name, g in pull(rows.row(index), index == rows.count - 1).items():
            folded[name] = norm.step(folded.get(name), g)
    return folded


def finisher(count: int, norm: Norm) -> Callable[[Tensor], Tensor]:
    """The last step of a norm over rows: of one row, every norm is the absolute value.

    Args:
        count: number of rows.
        norm: the norm.

    Returns:
        From what :func:`fold_rows` returns to the norm.
    """
    return torch.abs if count == 1 else norm.finish


@ENGINES.register("loop")
def loop_engine(task: Task, sums: Sums, x: Inputs, y: Tensor, weights: Tensor | None) -> None:
    """One forward pass per sample and one plain backward pass per row.

    Args:
        task: the task.
        sums: added to in place.
        x: inputs, the batch first.
        y: label vectors, the batch first.
        weights: probes, the batch first, or None.
    """
    for k in range(len(y)):
        sample_weights = None if weights is None else weights[k]
        _add_sample(task, sums, part(x, k, k + 1), y[k], sample_weights)


def _add_sample(task: Task, sums: Sums, x: Inputs, y: Tensor, weights: Tensor | None) -> None:
    z = task.alone(x)[0]
    check_finite(z)
    if not z.requires_grad:
        return  # the logits of this model do not depend on the parameters
    scale = task.scale(z)

    def pull(cotangent: Tensor, last: bool, more: bool) -> dict[str, Tensor]:
        task.tick()
        grads = task.gradients(z, (cotangent * scale).to(z.dtype), more or not last)
        return {
            name: (g.to_dense() if g.is_sparse else g).to(sums[name].dtype)
            for name, g in zip(task.parameters, grads, strict=True)
            if g is not None
        }

    groups = task.plan.groups(z.detach().to(wide(z.dtype)), y, weights)
    with torch.no_grad():
        for group in groups:
            pull_one = partial(pull, more=group is not groups[-1])
            finish = finisher(group.count, task.plan.norm)
            for name, value in fold_rows(group, pull_one, task.plan.norm).items():
                sums[name].add_(finish(value), alpha=1 / scale)
