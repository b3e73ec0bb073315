"""Choose the engine and the chunk size, check the engine on real samples, and run it."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedsens.errors import SensitivityError
from fedsens.sensitivity.batching import Inputs, map_tensors, part
from fedsens.sensitivity.footprint import Footprint
from fedsens.sensitivity.norms import NORMS
from fedsens.sensitivity.per_sample import ENGINES, loop_engine
from fedsens.sensitivity.task import Sums, Task
from fedsens.sensitivity.vmapped import func_engine

LOGGER = logging.getLogger(__name__)

# what a model that torch.func cannot transform may raise; FedSensError is none of these
UNSUPPORTED = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError)
# an operator that vmap runs sample by sample; the others still gain (a transformer: 3 times)
SLOW = ".*performance drop.*"

DEFAULT_BUDGET = {"cpu": 96 * 2**20, "cuda": 2**30}
LARGEST_CHUNK = {"cpu": 64, "cuda": 512}
# vmap pays if this many samples fit in the default budget: fewer, and their gradients leave the
# cache (measured: func is 3 times faster at 60 k parameters, loop 1.2 times at 600 k)
ROOMY = 8
# and if at least this many run side by side
SMALLEST_VMAP = 4
# relative to the largest entry; a wrong gradient is off by order 1
TOLERANCE = {torch.float64: 1e-8, torch.float32: 5e-3}
HALF_TOLERANCE = 1e-1


def chunk_size(task: Task, seen: Footprint, memory_budget: int | None) -> int:
    """Samples that fit in a memory budget when they run side by side.

    A sample holds its gradients of one row, their accumulator and one temporary, and its
    activations with their cotangents. The sums take their place whatever the chunk.

    Args:
        task: the task.
        seen: what one sample's forward pass keeps.
        memory_budget: bytes above the loaded model, or None for a default per device.

    Returns:
        A number of samples, at least 1.
    """
    kind = task.device.type
    budget = DEFAULT_BUDGET.get(kind, DEFAULT_BUDGET["cpu"])
    sums = 2 * 4 * task.size
    sample = 3 * 4 * task.size + 3 * seen.bytes
    room = budget if memory_budget is None else memory_budget - sums
    return max(1, min(room // max(sample, 1), LARGEST_CHUNK.get(kind, LARGEST_CHUNK["cpu"])))


@dataclass
class Runner:
    """Runs chunks through one engine, and through ``loop`` once that engine fails.

    Attributes:
        task: the task.
        engine: ``"auto"`` until the first chunk, then the name of the engine in use.
        given_chunk: samples per call, or None to let the memory budget set it.
        memory_budget: bytes above the loaded model, or None for a default per device.
        chunk: samples per call in the last batch.
    """

    task: Task
    engine: str
    given_chunk: int | None = None
    memory_budget: int | None = None
    chunk: int = 0

    def add(
        self, sums: Sums, seen: Footprint, x: Inputs, y: Tensor, weights: Tensor | None
    ) -> None:
        """Add a batch's samples to the sums.

        Args:
            sums: what to add to, in place.
            seen: what one sample's forward pass keeps.
            x: inputs, the batch first.
            y: label vectors, the batch first.
            weights: probes, the batch first, or None.
        """
        self.chunk = self.given_chunk or chunk_size(self.task, seen, self.memory_budget)
        if self.engine == "auto":
            self.engine = self._choose(seen, x, y)
        for start in range(0, len(y), self.chunk):
            stop = start + self.chunk
            probes = None if weights is None else weights[start:stop]
            for name, value in self._run(part(x, start, stop), y[start:stop], probes).items():
                sums[name] += value

    def _choose(self, seen: Footprint, x: Inputs, y: Tensor) -> str:
        if min(self.chunk, len(y)) < SMALLEST_VMAP or chunk_size(self.task, seen, None) < ROOMY:
            return "loop"
        ends = sorted({0, len(y) - 1})
        problem = func_problem(self.task, seen, map_tensors(x, lambda t: t[ends]), y[ends])
        if problem is None:
            return "func"
        LOGGER.info("using the per-sample loop: %s", problem)
        return "loop"

    def _run(self, x: Inputs, y: Tensor, weights: Tensor | None) -> Sums:
        engine = ENGINES[self.engine]
        if self.engine == "loop":
            return engine(self.task, x, y, weights)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", SLOW)
                return engine(self.task, x, y, weights)
        except UNSUPPORTED as error:
            LOGGER.info("using the per-sample loop from here on: %s", error)
            self.engine = "loop"
            return loop_engine(self.task, x, y, weights)


def func_problem(task: Task, seen: Footprint, x: Inputs, y: Tensor) -> str | None:
    """Compare the ``func`` engine with plain autograd, one row each, on a few samples.

    Args:
        task: the task.
        seen: what one sample's forward pass gives.
        x: inputs, the batch first.
        y: label vectors, the batch first.

    Returns:
        Why ``func`` cannot be used, or None if it agrees.
    """
    plan = replace(task.plan, probes=1, probe="gauss", norm=NORMS["l2"])
    task = replace(task, plan=plan)
    weights = task.plan.draw(seen.shape, y, torch.Generator().manual_seed(0))
    expected = loop_engine(task, x, y, weights)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", SLOW)
            got = func_engine(task, x, y, weights)
    except (*UNSUPPORTED, UserWarning) as error:
        return f"{type(error).__name__} in torch.func"
    expected = {name: value for name, value in expected.items() if value.numel()}
    largest = max((float(value.max()) for value in expected.values()), default=0.0)
    for name, value in expected.items():
        tolerance = TOLERANCE.get(task.parameters[name].dtype, HALF_TOLERANCE)
        # entries that are zero but for rounding are compared with the largest of all
        allowed = tolerance * max(float(value.max()), 1e-3 * largest)
        if not float((got[name] - value).abs().max()) <= allowed:
            return f"torch.func disagrees with autograd in {name}"
    return None


def check_engine(engine: str) -> str:
    """Check the name of an engine.

    Args:
        engine: ``"auto"`` or a registered engine.

    Returns:
        The name.

    Raises:
        SensitivityError: it is neither.
    """
    if engine != "auto" and engine not in set(ENGINES):
        allowed = ", ".join(repr(name) for name in ("auto", *sorted(ENGINES)))
        raise SensitivityError(f"expected an engine out of {allowed}, got {engine!r}")
    return engine
