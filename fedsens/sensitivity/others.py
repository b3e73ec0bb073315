"""The engines for what cannot be captured: torch.func where it is right, else sample by sample."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedsens.sensitivity.batching import Inputs, map_tensors, part
from fedsens.sensitivity.chunks import Footprint, func_chunk
from fedsens.sensitivity.norms import NORMS
from fedsens.sensitivity.per_sample import ENGINES, loop_engine
from fedsens.sensitivity.task import Sums, Task
from fedsens.sensitivity.tolerance import SLOW, UNSUPPORTED, differing, first_line
from fedsens.sensitivity.vmapped import func_engine

LOGGER = logging.getLogger(__name__)

# vmap pays if this many samples fit in the default budget: fewer, and their gradients leave the
# cache (measured: func is 3 times faster at 60 k parameters, loop 1.2 times at 600 k)
ROOMY = 8
# and if at least this many run side by side
SMALLEST_VMAP = 4


@dataclass
class Others:
    """Runs samples through ``func`` or ``loop``, and through ``loop`` once ``func`` fails.

    Attributes:
        task: the task.
        engine: ``"auto"`` until the first samples, then the name of the engine in use.
        given_chunk: samples per call, or None to let the memory budget set it.
        memory_budget: bytes above the loaded model, or None for a default per device.
    """

    task: Task
    engine: str
    given_chunk: int | None
    memory_budget: int | None

    def add(
        self, sums: Sums, seen: Footprint, x: Inputs, y: Tensor, weights: Tensor | None
    ) -> None:
        """Add samples to the sums.

        Args:
            sums: added to in place.
            seen: what one sample's forward pass keeps.
            x: inputs, the batch first.
            y: label vectors, the batch first.
            weights: probes, the batch first, or None.
        """
        chunk = self.given_chunk or func_chunk(self.task, seen, self.memory_budget)
        if self.engine == "auto":
            self.engine = self._choose(seen, x, y, chunk)
        for start in range(0, len(y), chunk):
            stop = start + chunk
            probes = None if weights is None else weights[start:stop]
            self._run(sums, part(x, start, stop), y[start:stop], probes)

    def _choose(self, seen: Footprint, x: Inputs, y: Tensor, chunk: int) -> str:
        if min(chunk, len(y)) < SMALLEST_VMAP or func_chunk(self.task, seen, None) < ROOMY:
            return "loop"
        ends = sorted({0, len(y) - 1})
        problem = func_problem(self.task, seen, map_tensors(x, lambda t: t[ends]), y[ends])
        if problem is None:
            return "func"
        LOGGER.info("using the per-sample loop: %s", problem)
        return "loop"

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
    plan = replace(task.plan, probe="gauss", norm=NORMS["l2"])
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
