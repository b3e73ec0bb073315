"""Cut batches into chunks and give every parameter to the fastest engine that is right for it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fedsens.errors import SensitivityError
from fedsens.sensitivity.batching import Inputs, part
from fedsens.sensitivity.budget import capture_chunk
from fedsens.sensitivity.capture import Capture
from fedsens.sensitivity.footprint import Footprint
from fedsens.sensitivity.others import Others
from fedsens.sensitivity.per_sample import ENGINES
from fedsens.sensitivity.task import Sums, Task

LOGGER = logging.getLogger(__name__)

CAPTURING = ("auto", "capture")


@dataclass
class Runner:
    """Runs chunks through the engines.

    Attributes:
        task: the task.
        engine: ``"auto"``, or the name of an engine.
        given_chunk: samples at a time, or None to let the memory budget set it.
        memory_budget: bytes above the loaded model, or None for a default per device.
        chunk: samples at a time in the last batch.
        served: parameter's name to the engine that served it; ``"mixed"`` if several did.
    """

    task: Task
    engine: str
    given_chunk: int | None = None
    memory_budget: int | None = None
    chunk: int = 0
    served: dict[str, str] = field(default_factory=dict)
    _others: dict[frozenset[str], Others] = field(default_factory=dict)
    _reported: bool = False

    def __post_init__(self) -> None:
        self._capture = Capture(self.task)

    def add(
        self, sums: Sums, seen: Footprint, x: Inputs, y: Tensor, weights: Tensor | None
    ) -> None:
        """Add a batch's samples to the sums.

        Args:
            sums: added to in place.
            seen: what one sample's forward pass keeps.
            x: inputs, the batch first.
            y: label vectors, the batch first.
            weights: probes, the batch first, or None.
        """
        fits = self.given_chunk or self._fits(seen, y, weights)
        self.chunk = fits or 1
        every = frozenset(self.task.parameters)
        if self.engine not in CAPTURING or (self.engine == "auto" and not fits):
            self._rest(every, sums, seen, x, y, weights)
            return
        for start in range(0, len(y), self.chunk):
            stop = start + self.chunk
            some_x, some_y = part(x, start, stop), y[start:stop]
            some_weights = None if weights is None else weights[start:stop]
            failed = self._capture.add(sums, some_x, some_y, some_weights)
            self._serve(every - set(failed), "capture")
            if failed:
                self._report(failed)
                self._rest(frozenset(failed), sums, seen, some_x, some_y, some_weights)

    def _fits(self, seen: Footprint, y: Tensor, weights: Tensor | None) -> int:
        rows = self.task.plan.row_count(seen.shape, y[0]) if weights is None else weights.shape[2]
        return capture_chunk(self.task, seen, rows, self.memory_budget)

    def _rest(
        self,
        names: frozenset[str],
        sums: Sums,
        seen: Footprint,
        x: Inputs,
        y: Tensor,
        weights: Tensor | None,
    ) -> None:
        if names not in self._others:
            engine = "auto" if self.engine in CAPTURING else self.engine
            task = self.task.only(names)
            self._others[names] = Others(task, engine, self.given_chunk, self.memory_budget)
        others = self._others[names]
        others.add(sums, seen, x, y, weights)
        self._serve(names, others.engine)

    def _serve(self, names: frozenset[str], engine: str) -> None:
        for name in names:
            self.served[name] = engine if self.served.get(name, engine) == engine else "mixed"

    def _report(self, failed: Mapping[str, str]) -> None:
        if not self._reported:
            reasons = "; ".join(f"{name} ({why})" for name, why in failed.items())
            LOGGER.info("not captured: %s", reasons)
        self._reported = True


def check_engine(engine: str) -> str:
    """Check the name of an engine.

    Args:
        engine: ``"auto"``, ``"capture"`` or a registered engine.

    Returns:
        The name.

    Raises:
        SensitivityError: it is neither.
    """
    known = {*CAPTURING, *ENGINES}
    if engine not in known:
        allowed = ", ".join(map(repr, sorted(known)))
        raise SensitivityError(f"expected an engine out of {allowed}, got {engine!r}")
    return engine
