"""The capture engine: one forward pass per chunk, one plain backward pass per row.

Every operation that takes a parameter is recorded with its input, and the backward passes deliver
its output's gradient for all samples at once; products of the two are reduced without storing a
gradient per sample. This is exact for whatever has a rule and stands the checks: that of
:mod:`fedsens.sensitivity.capture._verify` on a few samples of each kind of batch, and the same on a
random sample of the chunk that is computed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import fedsens.sensitivity.capture._ops  # noqa: F401  registers the rules
from fedsens.sensitivity._batching import Inputs, part
from fedsens.sensitivity._task import Sums, Task, check_finite, wide
from fedsens.sensitivity._tolerance import UNSUPPORTED
from fedsens.sensitivity.capture._backward import (
    WOKEN,
    ReadUse,
    add_rows,
    left_of,
    pull_back,
    woken,
)
from fedsens.sensitivity.capture._head import Head, find_head
from fedsens.sensitivity.capture._locate import (
    NONE,
    differ,
    mixes,
    random_factors,
    record,
    scaled_by,
)
from fedsens.sensitivity.capture._recorder import Recorder
from fedsens.sensitivity.capture._rows import chunk_rows
from fedsens.sensitivity.capture._verify import MIXED, Reading, differences, read

LOGGER = logging.getLogger(__name__)

CHECKS = ("sampled", "every")
# samples after which a chunk is checked though one of its kind and shapes has been
CHECKED_EVERY = 128
# samples of each chunk that check="every" compares
SAMPLES_OF_EVERY = 8
# share of a chunk's samples that are run alone where the model looks at masks
LOOKED_AT = 16
# how often the samples are looked for again because a first gradient reaches an operation
WOKEN_READS = 3
ELSEWHERE = "in this batch its samples are elsewhere than in others"


class Capture:
    """Runs chunks, and remembers how the operations of each kind of batch are read.

    Args:
        task: the task.
        check: ``"sampled"`` or ``"every"``; see :func:`~fedsens.sensitivity_map`.
        seed: of the choice of samples to check.
    """

    def __init__(self, task: Task, check: str = "sampled", seed: int = 0) -> None:
        self.task = task
        self._every = check == "every"
        self._generator = torch.Generator().manual_seed(seed)
        self._readings: dict[Any, Reading] = {}
        self._woken: dict[Any, int] = {}
        self._checked: set[Any] = set()
        self._unchecked = 0  # samples since the last check
        self._repeated: frozenset[int] = NONE

    def add(self, sums: Sums, x: Inputs, y: Tensor, weights: Tensor | None) -> Mapping[str, str]:
        """Add a chunk's samples to the sums of the parameters that can be captured.

        Args:
            sums: added to in place.
            x: inputs, the batch first.
            y: label vectors, the batch first.
            weights: probes, the batch first, or None.

        Returns:
            Names of the parameters that another engine has to serve, with the reason.
        """
        try:
            recorder, z = self._record(x, len(y))
            reading = self._reading(recorder, x, len(y))
            if reading.repeated != recorder.repeated:
                self._repeated = reading.repeated
                recorder, z = self._record(x, len(y))
            mixed = reading.kind != recorder.kind or self._mixes(recorder, x, z)
        except UNSUPPORTED as error:  # the model does not bear several samples, or the mode
            why = f"{type(error).__name__} with several samples: {error}"
            return dict.fromkeys(self.task.parameters, why)
        if mixed:
            return dict.fromkeys(self.task.parameters, MIXED)
        if not z.requires_grad:
            return reading.failed
        return self._verified_add(sums, x, y, weights, recorder, z, reading)

    def _verified_add(
        self,
        sums: Sums,
        x: Inputs,
        y: Tensor,
        weights: Tensor | None,
        recorder: Recorder,
        z: Tensor,
        reading: Reading,
    ) -> Mapping[str, str]:
        shapes = tuple(use.shape for use in recorder.uses)
        key = (recorder.kind, len(y), shapes)
        check = None
        if self._due(key, recorder):
            every = self._every or recorder.shapes
            count = SAMPLES_OF_EVERY if self._every else 1
            check = _ChunkCheck(self.task, x, z, reading, self._generator, every, count)
        chunk = _Chunk(self.task, z, y, weights, reading.of(recorder.uses))
        failed = chunk.add_to(sums, check)
        if check is not None:
            self._note_checked(key, failed)
        self._unchecked = 0 if check is not None else self._unchecked + len(y)
        self._remember(recorder, len(y), reading, failed)
        return reading.failed | failed

    def _due(self, key: Any, recorder: Recorder) -> bool:
        """Whether a chunk has to be checked."""
        values = recorder.shapes or recorder.decides
        seen = key in self._checked
        return self._every or values or not seen or self._unchecked >= CHECKED_EVERY

    def _note_checked(self, key: Any, failed: Mapping[str, str]) -> None:
        wrong = sorted(name for name, why in failed.items() if why != WOKEN)
        if wrong and key in self._checked and self._unchecked:
            LOGGER.warning(
                "what was captured of %s agreed with autograd in an earlier batch and does not in "
                "this one; from here on a slower engine serves it, but %d samples since the last "
                "check were not looked at: make the map again with check='every'",
                ", ".join(wrong),
                self._unchecked,
            )
        self._checked.add(key)

    def _remember(
        self, recorder: Recorder, samples: int, reading: Reading, failed: Mapping[str, str]
    ) -> None:
        """Leave what failed to other engines for good, and read again what has only woken up."""
        reading.failed.update({name: why for name, why in failed.items() if why != WOKEN})
        if WOKEN in failed.values():
            kind = samples > 1, recorder.kind
            self._woken[kind] = self._woken.get(kind, 0) + 1
            if self._woken[kind] <= WOKEN_READS:
                self._readings.pop(kind, None)
            else:
                reading.failed.update(failed)

    def _record(self, x: Inputs, samples: int) -> tuple[Recorder, Tensor]:
        try:
            recorder, z = record(self.task, x, samples, self._repeated)
        except UNSUPPORTED:
            if not self._repeated:
                raise
            self._repeated = NONE  # another kind of batch, which does not bear it
            recorder, z = record(self.task, x, samples)
        check_finite(z)
        return recorder, z

    def _reading(self, recorder: Recorder, x: Inputs, samples: int) -> Reading:
        # a batch of one sample does not show where the samples of larger ones are
        kind = samples > 1, recorder.kind
        if kind not in self._readings:
            some = torch.randperm(samples, generator=self._generator)[:2].tolist()
            reading = read(self.task, x, [*some, some[0]] if samples > 1 else some)
            for name, why in reading.failed.items():
                LOGGER.debug("not capturing %s: %s", name, why)
            self._readings[kind] = reading
            self._checked = {key for key in self._checked if key[0] != recorder.kind}
        return self._readings[kind]

    def _mixes(self, recorder: Recorder, x: Inputs, z: Tensor) -> bool:
        """Whether the samples' logits depend on each other, as far as the model gives reason."""
        if recorder.decides or self._every:
            return mixes(self.task, x, z, range(len(z)))
        if recorder.reads:
            count = max(2, len(z) // LOOKED_AT)
            return mixes(self.task, x, z, _some(len(z), count, self._generator))
        return False


def _some(samples: int, count: int, generator: torch.Generator) -> list[int]:
    """Some samples drawn at random."""
    chosen: list[int] = torch.randperm(samples, generator=generator)[:count].tolist()
    return chosen


@dataclass(frozen=True)
class _Chunk:
    """Samples whose forward pass is recorded and read."""

    task: Task
    z: Tensor
    y: Tensor
    weights: Tensor | None
    uses: Sequence[ReadUse]

    def add_to(self, sums: Sums, check: _ChunkCheck | None) -> dict[str, str]:
        """Add to the sums; names of the parameters that fail, with the reason."""
        plan, z, uses = self.task.plan, self.z, self.uses
        logits = z.detach().to(wide(z.dtype))
        groups = plan.group_count(tuple(z.shape[1:]))
        failed: dict[str, str] = {}
        pull = partial(add_rows, scale=self.task.scale(z))
        with torch.no_grad():

            def rows(group: int) -> Iterator[Tensor]:
                return self.task.ticking(chunk_rows(plan, logits, self.y, self.weights, group))

            head = self._head()
            if head is not None:
                if check is not None:
                    failed |= self._checked_first(next(rows(0)), check)
                    uses = left_of(uses, failed)
                targets = next((use.targets for use in uses if use.use is head.use), {})
                bound = head.bound(plan, logits, self.y)
                for name, norms in bound.norms(targets).items():
                    sums[name] += norms
                below = [use for use in uses if use.use is not head.use]
                return failed | pull(
                    sums, head.inputs, self.task.ticking(bound.rows()), below, keep_graph=False
                )
            for group in range(groups):
                # a kept graph is memory that this pass could have used again
                keep = group < groups - 1 or (check is not None and check.every)
                failed |= pull(sums, z, rows(group), uses, keep_graph=keep, check=check)
                uses, check = left_of(uses, failed), None
        return failed

    def _head(self) -> Head | None:
        """The last layer, if what lies below takes fewer rows by it."""
        shape, y = tuple(self.z.shape[1:]), self.y[0]
        if self.weights is not None or not self.task.plan.has_closed_form(shape, y):
            return None
        head = find_head([use.use for use in self.uses], self.z)
        saves = head is not None and head.rows < self.task.plan.row_count(shape, y)
        return head if saves else None

    def _checked_first(self, row: Tensor, check: _ChunkCheck) -> dict[str, str]:
        """What the check says of one row of all the logits."""
        uses = [use.use for use in self.uses]
        return check(row, pull_back(self.z, uses, row, self.task.scale(self.z), True), self.uses)


@dataclass(frozen=True)
class _ChunkCheck:
    """Compares random samples of a chunk with autograd's gradients of each of them alone.

    With ``every`` it also looks where *all* samples of the chunk are: one more backward pass.
    """

    task: Task
    x: Inputs
    z: Tensor
    reading: Reading
    generator: torch.Generator
    every: bool
    count: int

    def __call__(
        self, row: Tensor, cotangents: Sequence[Tensor | None], uses: Sequence[ReadUse]
    ) -> dict[str, str]:
        task = self.task
        failed: dict[str, str] = {}
        try:
            left = self.reading.failed.keys() | woken(uses, cotangents)
            for chosen in self._samples(row):
                with torch.enable_grad():
                    alone = task.logits(part(self.x, chosen, chosen + 1))
                if differ(self.z[chosen : chosen + 1], [alone]):
                    return dict.fromkeys(task.parameters, MIXED)
                known = left | failed.keys()
                failed |= differences(task, uses, cotangents, row, chosen, alone, known)
            return failed | (self._misplaced(row, cotangents, uses) if self.every else {})
        except UNSUPPORTED as error:
            why = f"{type(error).__name__} in the check: {error}"
            return dict.fromkeys(task.parameters, why)

    def _samples(self, row: Tensor) -> list[int]:
        """Random samples, those with a cotangent if there are any."""
        live = row.flatten(1).any(1).nonzero()[:, 0].tolist() or list(range(len(row)))
        return [live[at] for at in _some(len(live), self.count, self.generator)]

    def _misplaced(
        self, row: Tensor, cotangents: Sequence[Tensor | None], uses: Sequence[ReadUse]
    ) -> dict[str, str]:
        """Parameters of operations in which some sample of the chunk is elsewhere."""
        factors = random_factors(len(row), row)
        factors = factors[torch.randperm(len(factors), generator=self.generator)]
        scaled = pull_back(
            self.z,
            [use.use for use in uses],
            scaled_by(row, factors),
            self.task.scale(self.z),
            True,
        )
        wrong = (
            use
            for use, d, e in zip(uses, cotangents, scaled, strict=True)
            if use.axis and d is not None and e is not None and not use.axis.holds(d, e, factors)
        )
        return {target.name: ELSEWHERE for use in wrong for target in use.targets.values()}
