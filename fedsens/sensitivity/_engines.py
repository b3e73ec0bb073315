"""The engines for what cannot be captured: ``torch.func`` where it is right, else sample by sample.

An engine takes a task, the sums so far, and the inputs, label vectors and probes of some samples,
and adds to the sums what these samples add: for each parameter of the task the norm over rows.
``loop`` is right for any module; ``func`` runs the samples side by side with ``torch.func.vmap``.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from fedsens._extensions import Registry
from fedsens.errors import SensitivityError
from fedsens.sensitivity._batching import Inputs, map_tensors, part
from fedsens.sensitivity._chunks import MemoryProfile, func_chunk
from fedsens.sensitivity._preserve import parameters_kept
from fedsens.sensitivity._rows import NORMS, LabelRows, Norm
from fedsens.sensitivity._task import Sums, Task, accumulation_dtype, check_finite
from fedsens.sensitivity._tolerance import SLOW, UNSUPPORTED, differing, first_line

Engine = Callable[[Task, Sums, Inputs, Tensor, Tensor | None], None]
ENGINES: Registry[Engine] = Registry("engine", error=SensitivityError)

Pull = Callable[[Tensor, bool], dict[str, Tensor]]


def fold_rows(rows: LabelRows, pull: Pull, norm: Norm) -> dict[str, Tensor]:
    """Accumulate a sample's gradients for :func:`finisher`, holding one row at a time."""
    if rows.count == 1:
        return pull(rows.row(0), True)
    folded: dict[str, Tensor] = {}
    for index in range(rows.count):
        for name, g in pull(rows.row(index), index == rows.count - 1).items():
            folded[name] = norm.step(folded.get(name), g)
    return folded


def finisher(count: int, norm: Norm) -> Callable[[Tensor], Tensor]:
    """The last step of a norm over rows: of one row, every norm is the absolute value."""
    return torch.abs if count == 1 else norm.finish


@ENGINES.register("loop")
def loop_engine(task: Task, sums: Sums, x: Inputs, y: Tensor, weights: Tensor | None) -> None:
    """One forward pass per sample and one plain backward pass per row."""
    for k in range(len(y)):
        sample_weights = None if weights is None else weights[k]
        _add_sample(task, sums, part(x, k, k + 1), y[k], sample_weights)


def _add_sample(task: Task, sums: Sums, x: Inputs, y: Tensor, weights: Tensor | None) -> None:
    z = task.per_sample_logits(x)[0]
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

    groups = task.plan.groups(z.detach().to(accumulation_dtype(z.dtype)), y, weights)
    with torch.no_grad():
        for group in groups:
            pull_one = partial(pull, more=group is not groups[-1])
            finish = finisher(group.count, task.plan.norm)
            for name, value in fold_rows(group, pull_one, task.plan.norm).items():
                sums[name].add_(finish(value), alpha=1 / scale)


# from this many entries on, summing one sample at a time is faster: it stays in the cache
LARGE = 1024
PREFIX = "model."


@ENGINES.register("func")
def func_engine(task: Task, sums: Sums, x: Inputs, y: Tensor, weights: Tensor | None) -> None:
    """All samples side by side, their rows one after the other."""
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
        groups = task.plan.groups(z.detach().to(accumulation_dtype(z.dtype)), y, weights)

        def pull(cotangent: Tensor, last: bool) -> dict[str, Tensor]:
            task.tick()
            keep = not last or len(groups) > 1
            (grads,) = pullback((cotangent * self.scale).to(z.dtype), retain_graph=keep)
            return {name: g.to(accumulation_dtype(g.dtype)) for name, g in grads.items()}

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


LOGGER = logging.getLogger(__name__)

# vmap pays if this many samples fit in the default budget: fewer, and their gradients leave the
# cache (measured: func is 3 times faster at 60 k parameters, loop 1.2 times at 600 k)
ROOMY = 8
# and if at least this many run side by side
SMALLEST_VMAP = 4


@dataclass
class FallbackEngine:
    """Runs samples through ``func`` or ``loop``, and through ``loop`` once ``func`` fails.

    Attributes:
        task: the task.
        engine: ``"auto"`` until the first samples, then the name of the engine in use.
        given_chunk: samples per call, or None to let the memory budget set it.
        memory_budget: bytes above the loaded model, or None for a default per device.
        compared: whether ``func`` has been compared with autograd.
    """

    task: Task
    engine: str
    given_chunk: int | None
    memory_budget: int | None
    compared: bool = False

    def add(
        self, sums: Sums, seen: MemoryProfile, x: Inputs, y: Tensor, weights: Tensor | None
    ) -> None:
        """Add samples to the sums."""
        chunk = self.given_chunk or func_chunk(self.task, seen, self.memory_budget)
        if self.engine == "auto" and not _pays(self.task, seen, min(chunk, len(y))):
            self.engine = "loop"
        if self.engine in {"auto", "func"} and not self.compared:
            self._compare(seen, x, y)
        for start in range(0, len(y), chunk):
            stop = start + chunk
            probes = None if weights is None else weights[start:stop]
            self._run(sums, part(x, start, stop), y[start:stop], probes)

    def _compare(self, seen: MemoryProfile, x: Inputs, y: Tensor) -> None:
        """Take ``func`` if it agrees with autograd, else ``loop``."""
        ends = sorted({0, len(y) - 1})
        problem = func_problem(self.task, seen, map_tensors(x, lambda t: t[ends]), y[ends])
        self.engine, self.compared = "func" if problem is None else "loop", True
        if problem is not None:
            LOGGER.info("using the per-sample loop: %s", problem)

    def _run(self, sums: Sums, x: Inputs, y: Tensor, weights: Tensor | None) -> None:
        if self.engine == "loop":
            loop_engine(self.task, sums, x, y, weights)
            return
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", SLOW)
                ENGINES[self.engine](self.task, sums, x, y, weights)
        except UNSUPPORTED as error:
            LOGGER.info("using the per-sample loop from here on: %s", first_line(error))
            self.engine = "loop"
            loop_engine(self.task, sums, x, y, weights)


def _pays(task: Task, seen: MemoryProfile, samples: int) -> bool:
    """Whether ``func`` is faster than ``loop``, if it is right."""
    return samples >= SMALLEST_VMAP and func_chunk(task, seen, None) >= ROOMY


def func_problem(task: Task, seen: MemoryProfile, x: Inputs, y: Tensor) -> str | None:
    """Compare the ``func`` engine with plain autograd, one row each, on a few samples."""
    plan = replace(task.plan, norm=NORMS["l2"])
    task = replace(task, plan=plan)
    weights = plan.draw(seen.shape, y, torch.Generator().manual_seed(0), 1)
    expected, got = task.zeros(), task.zeros()
    loop_engine(task, expected, x, y, weights)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", SLOW)
            func_engine(task, got, x, y, weights)
    except (*UNSUPPORTED, UserWarning) as error:
        return f"{type(error).__name__} in torch.func"
    dtypes = {name: parameter.dtype for name, parameter in task.parameters.items()}
    wrong = differing(got, expected, dtypes)
    return f"torch.func disagrees with autograd in {', '.join(wrong)}" if wrong else None
