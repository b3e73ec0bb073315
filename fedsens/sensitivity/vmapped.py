"""The engine that runs samples side by side with ``torch.func.vmap``."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from fedsens.sensitivity.batching import Inputs, map_tensors
from fedsens.sensitivity.per_sample import ENGINES, finisher, fold_rows
from fedsens.sensitivity.preserve import parameters_kept
from fedsens.sensitivity.task import Sums, Task, check_finite, wide

# from this many entries on, summing one sample at a time is faster: it stays in the cache
LARGE = 1024
PREFIX = "model."


@ENGINES.register("func")
def func_engine(task: Task, sums: Sums, x: Inputs, y: Tensor, weights: Tensor | None) -> None:
    """All samples side by side, their rows one after the other.

    Args:
        task: the task.
        sums: added to in place.
        x: inputs, the batch first.
        y: label vectors, the batch first.
        weights: probes, the batch first, or None.
    """
    one = _Sample(task)
    # without no_grad the pullback would record a graph of its own for second derivatives
    with torch.no_grad(), parameters_kept(task.model):
        in_dims = (0, 0, None if weights is None else 0)
        norms, z = vmap(one, in_dims=in_dims)(x, y, weights)
        check_finite(z)
        for name in task.parameters:
            _add_samples(sums[name], norms[PREFIX + name], 1 / one.scale)


class _Sample:
    """What ``vmap`` maps over samples; remembers what is equal for all of them."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.bound = _Bound(task)
        self.scale = 1.0
        constants = {name: p.detach() for name, p in task.model.named_parameters()}
        constants |= {name: b.detach() for name, b in task.model.named_buffers()}
        self.selected = {PREFIX + name: constants.pop(name) for name in task.parameters}
        self.constants = {PREFIX + name: value for name, value in constants.items()}

    def __call__(
        self, x: Inputs, y: Tensor, weights: Tensor | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        task, inputs = self.task, map_tensors(x, lambda tensor: tensor[None])

        def logits(selected: dict[str, Tensor]) -> Tensor:
            output: Tensor = functional_call(self.bound, {**self.constants, **selected}, (inputs,))
            return output

        z, pullback = vjp(logits, self.selected)[:2]  # a third item comes with has_aux only
        self.scale, norm = task.scale(z), task.plan.norm
        groups = task.plan.groups(z.detach().to(wide(z.dtype)), y, weights)

        def pull(cotangent: Tensor, last: bool) -> dict[str, Tensor]:
            task.tick()
            keep = not last or len(groups) > 1
            (grads,) = pullback((cotangent * self.scale).to(z.dtype), retain_graph=keep)
            return {name: g.to(wide(g.dtype)) for name, g in grads.items()}

        total: dict[str, Tensor] = {}
        for group in groups:
            finish = finisher(group.count, norm)
            for name, folded in fold_rows(group, pull, norm).items():
                value = finish(folded)
                total[name] = total[name] + value if name in total else value
        return total, z


class _Bound(nn.Module):
    """The model and its forward function as one module, for ``functional_call``."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self.task = task

    def forward(self, x: Inputs) -> Tensor:
        return self.task.logits(x, model=self.model)[0]


def _add_samples(total: Tensor, norms: Tensor, factor: float) -> None:
    """Add the sum over the first axis, times a factor."""
    if norms.is_cuda or norms[0].numel() < LARGE:
        total.add_(norms.sum(0), alpha=factor)
        return
    for sample in norms:
        total.add_(sample, alpha=factor)
