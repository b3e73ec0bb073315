"""Cut batches into chunks and give every parameter to the fastest engine that is right for it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from fedsens.errors import SensitivityError
from fedsens.sensitivity._batching import Inputs, part, tensors_of
from fedsens.sensitivity._chunks import (
    MemoryProfile,
    budget_of,
    capture_chunk,
    func_chunk,
    memory_profile,
)
from fedsens.sensitivity._engines import ENGINES, FallbackEngine
from fedsens.sensitivity._losses import check_label
from fedsens.sensitivity._map import SensitivityMap
from fedsens.sensitivity._parameters import TrackedParameters
from fedsens.sensitivity._plan import AUTO_PROBES, training_steps
from fedsens.sensitivity._progress import Meter
from fedsens.sensitivity._task import Sums, Task, accumulation_dtype
from fedsens.sensitivity.capture import Capture

LOGGER = logging.getLogger(__name__)

CAPTURING = ("auto", "capture")


@dataclass
class Runner:
    """Runs chunks through the engines, and holds the sums of the samples so far.

    Attributes:
        task: the task.
        engine: ``"auto"``, or the name of an engine.
        generator: of probes, on the CPU.
        halves: how many sums there are: 2 for two halves of the samples.
        given_chunk: samples at a time, or None to let the memory budget set it.
        memory_budget: bytes above the loaded model, or None for a default per device.
        check: how often what is captured is compared with autograd.
        seed: of the samples that are compared.
        meter: what is told of each chunk.
        chunk: samples at a time in the last batch.
        rows: ``"exact"`` or the number of probes of each sample; ``"mixed"`` if batches differ.
        served: parameter's name to the engine that served it; ``"mixed"`` if several did.
        counts: samples so far, of each half.
    """

    task: Task
    engine: str
    generator: torch.Generator
    halves: int = 1
    given_chunk: int | None = None
    memory_budget: int | None = None
    check: str = "sampled"
    seed: int = 0
    meter: Meter = field(default_factory=lambda: Meter(None, None, None))
    chunk: int = 0
    rows: str | int | None = None
    served: dict[str, str] = field(default_factory=dict)
    counts: list[int] = field(default_factory=list)
    _fallbacks: dict[frozenset[str], FallbackEngine] = field(default_factory=dict)
    _reported: bool = False
    _depends: bool = False
    _seen: tuple[Any, MemoryProfile] | None = None

    def __post_init__(self) -> None:
        self._capture = Capture(self.task, self.check, self.seed)
        self._sums = [self.task.zeros() for _ in range(self.halves)]
        self.counts = [0] * self.halves

    def map(self, half: int, tracked: TrackedParameters) -> SensitivityMap:
        """The map of the samples so far, of one half."""
        sums = {name: value.to("cpu", copy=True) for name, value in self._sums[half].items()}
        meta = {
            "rows": self.rows,
            "seed": None if self.rows == "exact" else self.generator.initial_seed(),
            "engines": {name: self.served[name] for name in self.task.parameters},
            "chunk": self.chunk,
        }
        return SensitivityMap(tracked.expand(sums), self.counts[half], self.task.plan.meta | meta)

    def add(self, half: int, x: Inputs, y: Tensor) -> None:
        """Add a batch's samples to the sums of one half."""
        if len(y) == 0:
            return
        seen, loss = self._profile(x), self.task.plan.loss
        labels = loss.targets(seen.shape, y, accumulation_dtype(seen.dtype))
        if not self.counts[half] and not loss.closed:
            check_label(loss, self.task.plan.rule, seen.shape, labels[0])
        self._add_chunks(self._sums[half], seen, x, labels)
        self.counts[half] += self.task.plan.samples(labels)

    def check_dependence(self) -> None:
        """Check that the logits of any sample had a gradient: else the map is zero everywhere."""
        if self._depends or any(bool(v.any()) for sums in self._sums for v in sums.values()):
            return
        raise SensitivityError(
            "expected logits that depend on the parameters of the map, got logits without a "
            "gradient; is there torch.no_grad(), torch.inference_mode() or detach() in the "
            "model's forward?"
        )

    def _profile(self, x: Inputs) -> MemoryProfile:
        """What one sample keeps, the same for samples of the same shapes."""
        shapes = [tensor.shape[1:] for tensor in tensors_of(x)]
        if self._seen is None or self._seen[0] != shapes:
            self._seen = shapes, memory_profile(self.task, part(x, 0, 1))
            self._depends |= self._seen[1].depends
        return self._seen[1]

    def _add_chunks(self, sums: Sums, seen: MemoryProfile, x: Inputs, y: Tensor) -> None:
        plan = self.task.plan
        rows = plan.row_count(seen.shape, y[0])
        passes, probes = self._passes(seen, rows, y)
        captures = self.engine in CAPTURING and plan.norm.rotation_invariant
        fits = self.given_chunk or self._fits(seen, rows, passes, probes, y)
        self.chunk = fits or 1
        if not captures or (self.engine == "auto" and not fits):
            captures = False
            self.chunk = self.given_chunk or func_chunk(self.task, seen, self.memory_budget)
        every = frozenset(self.task.parameters)
        # chunks of one size, as each new size is compared with autograd
        size = -(-len(y) // -(-len(y) // self.chunk))
        for start in range(0, len(y), size):
            some_x, some_y = part(x, start, start + size), y[start : start + size]
            weights = None
            if probes is not None:
                weights = plan.draw(seen.shape, some_y, self.generator, probes)
            failed: Mapping[str, str] = dict.fromkeys(every, "")
            if captures:
                failed = self._capture.add(sums, some_x, some_y, weights)
                self._report(failed)
            self._serve(every - set(failed), "capture")
            if failed:
                self._rest(frozenset(failed), sums, seen, some_x, some_y, weights)
            self.meter.add(len(some_y), passes, probes is None, self.chunk)

    def _passes(self, seen: MemoryProfile, rows: int, y: Tensor) -> tuple[int, int | None]:
        """Backward passes per sample, and the number of probes if they are random."""
        plan = self.task.plan
        exact = rows * plan.group_count(seen.shape)
        if (
            seen.head is not None
            and self.engine in CAPTURING
            and plan.probes is None
            and plan.has_closed_form(seen.shape, y[0])
        ):
            exact = min(exact, seen.head)
        probes = plan.probes_for(rows, exact)
        if probes is not None and plan.auto and self.rows is None:
            LOGGER.warning(
                "an exact map takes %d backward passes per sample, about %.0f training steps, so "
                "it is estimated from %d random probes per sample, without bias; rows='exact' "
                "forces every row, rows=%d is faster",
                exact,
                training_steps(exact),
                probes,
                AUTO_PROBES // 4,
            )
        used = "exact" if probes is None else probes
        self.rows = used if self.rows in {None, used} else "mixed"
        passes = exact if probes is None else probes * plan.group_count(seen.shape)
        LOGGER.debug("%d backward passes per sample", passes)
        return passes, probes

    def _fits(
        self, seen: MemoryProfile, rows: int, passes: int, probes: int | None, y: Tensor
    ) -> int:
        """Samples that the memory budget has room for."""
        item, plan = accumulation_dtype(seen.dtype).itemsize, self.task.plan
        labels = 0
        if probes is not None:
            labels = 16 * probes * rows * plan.group_count(seen.shape)
        elif not plan.loss.closed:
            labels = 2 * item * rows * prod(seen.shape)
            self._check_labels(labels)
        each = passes // plan.group_count(seen.shape)  # rows of one group are held at a time
        return capture_chunk(self.task, seen, each, self.memory_budget, labels)

    def _check_labels(self, label_bytes: int) -> None:
        """Check that one sample's rows of a loss without closed form fit the budget."""
        room = budget_of(self.task, self.memory_budget)
        if label_bytes > room:
            name = self.task.plan.loss.name
            raise SensitivityError(
                f"expected rows of the loss {name} that fit in {room / 1e6:.0f} MB, got "
                f"{label_bytes / 1e6:.0f} MB per sample: its d2L/dy dz has no closed form; raise "
                "memory_budget, use rule='true_label', or register the loss with its rows"
            )

    def _rest(
        self,
        names: frozenset[str],
        sums: Sums,
        seen: MemoryProfile,
        x: Inputs,
        y: Tensor,
        weights: Tensor | None,
    ) -> None:
        if names not in self._fallbacks:
            engine = "auto" if self.engine in CAPTURING else self.engine
            task = self.task.only(names)
            self._fallbacks[names] = FallbackEngine(
                task, engine, self.given_chunk, self.memory_budget
            )
        others = self._fallbacks[names]
        others.add(sums, seen, x, y, weights)
        self._serve(names, others.engine)

    def _serve(self, names: frozenset[str], engine: str) -> None:
        for name in names:
            self.served[name] = engine if self.served.get(name, engine) == engine else "mixed"

    def _report(self, failed: Mapping[str, str]) -> None:
        if failed and not self._reported:
            reasons = "; ".join(f"{name} ({why})" for name, why in failed.items())
            LOGGER.info("not captured: %s", reasons)
            self._reported = True


def check_engine(engine: str) -> str:
    """Check the name of an engine."""
    known = {*CAPTURING, *ENGINES}
    if engine not in known:
        allowed = ", ".join(map(repr, sorted(known)))
        raise SensitivityError(f"expected an engine out of {allowed}, got {engine!r}")
    return engine
