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

from fedsens.sensitivity._batching import Inputs, part
from fedsens.sensitivity._task import Sums, Task, accumulation_dtype, check_finite
from fedsens.sensitivity._tolerance import Uncovered, own_faults_told, refusals
from fedsens.sensitivity.capture import _convolution, _rules  # noqa: F401  they register the rules
from fedsens.sensitivity.capture._backward import (
    WOKEN,
    add_rows,
    chunk_rows,
    pull_back,
    woken,
)
from fedsens.sensitivity.capture._head import Head, find_head, mixing
from fedsens.sensitivity.capture._recorder import Operation, Recorder, left_of
from fedsens.sensitivity.capture._verify import (
    MIXED,
    NONE,
    Verification,
    differ,
    differences,
    mixes,
    random_factors,
    read,
    record,
    scaled_by,
)

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
        self._verifications: dict[Any, Verification] = {}
        self._woken: dict[Any, int] = {}
        self._checked: set[Any] = set()
        self._unchecked = 0  # samples since the last check
        self._repeated: frozenset[int] = NONE
        _keep_freed_memory()

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
        problems: dict[str, str] = {}
        with own_faults_told("capturing", self.task.parameters, problems):
            recorder, z, verification = self._verified(x, len(y))
            if verification.kind != recorder.kind or self._mixes(recorder, x, z):
                return dict.fromkeys(self.task.parameters, MIXED)
        if problems:  # the model does not bear several samples, or the mode
            return problems
        if not z.requires_grad:
            return verification.failed
        return self._verified_add(sums, x, y, weights, recorder, z, verification)

    def _verified(self, x: Inputs, samples: int) -> tuple[Recorder, Tensor, Verification]:
        """A recorded forward pass, and how its operations are to be read."""
        recorder, z = self._record(x, samples)
        verification = self._verification(recorder, x, samples)
        if verification.repeated != recorder.repeated:
            self._repeated = verification.repeated
            recorder, z = self._record(x, samples)
        return recorder, z, verification

    def _verified_add(
        self,
        sums: Sums,
        x: Inputs,
        y: Tensor,
        weights: Tensor | None,
        recorder: Recorder,
        z: Tensor,
        verification: Verification,
    ) -> Mapping[str, str]:
        shapes = tuple(one.shape for one in recorder.operations)
        key = (recorder.kind, len(y), shapes)
        check = None
        if self._due(key, recorder):
            every = self._every or recorder.shapes
            count = SAMPLES_OF_EVERY if self._every else 1
            check = _ChunkCheck(self.task, x, z, verification, self._generator, every, count)
        chunk = _Chunk(self.task, z, y, weights, verification.of(recorder.operations))
        failed = chunk.add_to(sums, check)
        if check is not None:
            self._note_checked(key, failed)
        self._unchecked = 0 if check is not None else self._unchecked + len(y)
        self._remember(recorder, len(y), verification, failed)
        return verification.failed | failed

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
        self,
        recorder: Recorder,
        samples: int,
        verification: Verification,
        failed: Mapping[str, str],
    ) -> None:
        """Leave what failed to other engines for good, and read again what has only woken up."""
        verification.failed.update({name: why for name, why in failed.items() if why != WOKEN})
        if WOKEN in failed.values():
            kind = samples > 1, recorder.kind
            self._woken[kind] = self._woken.get(kind, 0) + 1
            if self._woken[kind] <= WOKEN_READS:
                self._verifications.pop(kind, None)
            else:
                verification.failed.update(failed)

    def _record(self, x: Inputs, samples: int) -> tuple[Recorder, Tensor]:
        try:
            recorder, z = record(self.task, x, samples, self._repeated)
        except Uncovered:
            if not self._repeated:
                raise
            self._repeated = NONE  # another kind of batch, which does not bear it
            recorder, z = record(self.task, x, samples)
        check_finite(z)
        return recorder, z

    def _verification(self, recorder: Recorder, x: Inputs, samples: int) -> Verification:
        # a batch of one sample does not show where the samples of larger ones are
        kind = samples > 1, recorder.kind
        if kind not in self._verifications:
            some = torch.randperm(samples, generator=self._generator)[:2].tolist()
            verification = read(self.task, x, [*some, some[0]] if samples > 1 else some)
            for name, why in verification.failed.items():
                LOGGER.debug("not capturing %s: %s", name, why)
            self._verifications[kind] = verification
            self._checked = {key for key in self._checked if key[0] != recorder.kind}
        return self._verifications[kind]

    def _mixes(self, recorder: Recorder, x: Inputs, z: Tensor) -> bool:
        """Whether the samples' logits depend on each other, as far as the model gives reason."""
        if recorder.decides or self._every:
            return mixes(self.task, x, z, range(len(z)))
        if recorder.reads:
            count = max(2, len(z) // LOOKED_AT)
            return mixes(self.task, x, z, _some(len(z), count, self._generator))
        return False


def _keep_freed_memory() -> None:
    """Let the allocator reuse what a backward pass frees instead of giving it back to the system.

    glibc takes a block from the system, and gives it back, where it is larger than any freed so
    far, up to 32 MiB; a page that is taken anew (2 us) costs more than what is computed in it.
    This block is freed with no page of it in use.
    """
    torch.empty(2**25 - 2**12, dtype=torch.uint8)


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
    operations: Sequence[Operation]

    def add_to(self, sums: Sums, check: _ChunkCheck | None) -> dict[str, str]:
        """Add to the sums; names of the parameters that fail, with the reason."""
        plan, z, operations = self.task.plan, self.z, self.operations
        logits = z.detach().to(accumulation_dtype(z.dtype))
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
                    operations = left_of(operations, failed)
                last = head.operation.without(failed)
                q_and_scale = mixing(plan, logits, self.y)
                for name, norms in head.norms(last.targets, *q_and_scale).items():
                    sums[name] += norms
                below = [one for one in operations if one.index != last.index]
                ticking = self.task.ticking(head.rows(*q_and_scale))
                return failed | pull(sums, head.inputs, ticking, below, keep_graph=False)
            for group in range(groups):
                # a kept graph is memory that this pass could have used again
                keep = group < groups - 1 or (check is not None and check.every)
                failed |= pull(sums, z, rows(group), operations, keep_graph=keep, check=check)
                operations, check = left_of(operations, failed), None
        return failed

    def _head(self) -> Head | None:
        """The last layer, if what lies below takes fewer rows by it."""
        shape, y = tuple(self.z.shape[1:]), self.y[0]
        if self.weights is not None or not self.task.plan.has_closed_form(shape, y):
            return None
        head = find_head(self.operations, self.z)
        saves = head is not None and head.passes < self.task.plan.row_count(shape, y)
        return head if saves else None

    def _checked_first(self, row: Tensor, check: _ChunkCheck) -> dict[str, str]:
        """What the check says of one row of all the logits."""
        operations, scale = self.operations, self.task.scale(self.z)
        return check(row, pull_back(self.z, operations, row, scale, True), operations)


@dataclass(frozen=True)
class _ChunkCheck:
    """Compares random samples of a chunk with autograd's gradients of each of them alone.

    With ``every`` it also looks where *all* samples of the chunk are: one more backward pass.
    """

    task: Task
    x: Inputs
    z: Tensor
    verification: Verification
    generator: torch.Generator
    every: bool
    count: int

    def __call__(
        self, row: Tensor, cotangents: Sequence[Tensor | None], operations: Sequence[Operation]
    ) -> dict[str, str]:
        task = self.task
        failed: dict[str, str] = {}
        with own_faults_told("the check", task.parameters, failed):
            left = self.verification.failed.keys() | woken(operations, cotangents)
            for chosen in self._samples(row):
                with torch.enable_grad(), refusals("of the model in the check"):
                    alone = task.logits(part(self.x, chosen, chosen + 1))
                if differ(self.z[chosen : chosen + 1], [alone]):
                    return dict.fromkeys(task.parameters, MIXED)
                known = left | failed.keys()
                failed |= differences(task, operations, cotangents, row, chosen, alone, known)
            if self.every:
                failed |= self._misplaced(row, cotangents, operations)
        return failed

    def _samples(self, row: Tensor) -> list[int]:
        """Random samples, those with a cotangent if there are any."""
        live = row.flatten(1).any(1).nonzero()[:, 0].tolist() or list(range(len(row)))
        return [live[at] for at in _some(len(live), self.count, self.generator)]

    def _misplaced(
        self, row: Tensor, cotangents: Sequence[Tensor | None], operations: Sequence[Operation]
    ) -> dict[str, str]:
        """Parameters of operations in which some sample of the chunk is elsewhere."""
        factors = random_factors(len(row), row)
        factors = factors[torch.randperm(len(factors), generator=self.generator)]
        by_factors, scale = scaled_by(row, factors), self.task.scale(self.z)
        scaled = pull_back(self.z, operations, by_factors, scale, True)
        wrong: dict[str, str] = {}
        for one, d, e in zip(operations, cotangents, scaled, strict=True):
            if one.axis and d is not None and e is not None:
                with own_faults_told("the check of its samples", one.names, wrong):
                    if not one.axis.holds(d, e, factors):
                        wrong.update(dict.fromkeys(one.names, ELSEWHERE))
        return wrong
