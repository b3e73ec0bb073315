"""The capture engine: one forward pass per chunk, one plain backward pass per row.

Every operation that takes a parameter is recorded with its input, and the backward passes deliver
its output's gradient for all samples at once; products of the two are reduced without storing a
gradient per sample. This is exact for whatever has a rule and stands the check of
:mod:`fedsens.sensitivity.capture.reading`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import fedsens.sensitivity.capture.ops  # noqa: F401  registers the rules
from fedsens.sensitivity.batching import Inputs, map_tensors
from fedsens.sensitivity.capture.backward import ReadUse, add_rows
from fedsens.sensitivity.capture.head import Head, find_head
from fedsens.sensitivity.capture.placing import NONE, mixes, record
from fedsens.sensitivity.capture.reading import MIXED, Reading, read
from fedsens.sensitivity.capture.recorder import Recorder
from fedsens.sensitivity.capture.rows import chunk_rows
from fedsens.sensitivity.task import Sums, Task, check_finite, wide
from fedsens.sensitivity.unsupported import UNSUPPORTED

LOGGER = logging.getLogger(__name__)


class Capture:
    """Runs chunks, and remembers how the operations of each kind of batch are read.

    Args:
        task: the task.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self._readings: dict[Any, Reading] = {}
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
        recorder, z = self._record(x, len(y))
        reading = self._reading(recorder, x, len(y))
        if reading.repeated != recorder.repeated:
            self._repeated = reading.repeated
            recorder, z = self._record(x, len(y))
        if reading.kind != recorder.kind or (recorder.reads_values and mixes(self.task, x, z)):
            return dict.fromkeys(self.task.parameters, MIXED)
        if z.requires_grad:
            self._add(sums, z, y, weights, reading.of(recorder.uses))
        return reading.failed

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
            ends = sorted({0, samples - 1})
            reading = read(self.task, map_tensors(x, lambda tensor: tensor[ends]), len(ends))
            for name, why in reading.failed.items():
                LOGGER.debug("not capturing %s: %s", name, why)
            self._readings[kind] = reading
        return self._readings[kind]

    def _add(
        self, sums: Sums, z: Tensor, y: Tensor, weights: Tensor | None, uses: Sequence[ReadUse]
    ) -> None:
        plan = self.task.plan
        logits = z.detach().to(wide(z.dtype))
        groups = plan.group_count(tuple(z.shape[1:]))
        head = find_head(plan, uses, z)
        with torch.no_grad():
            for group in range(groups):
                rows = chunk_rows(plan, logits, y, weights, group)
                if head is not None and head.saves(plan.row_count(tuple(z.shape[1:]), y[0])):
                    self._add_below(sums, head, list(rows), uses)
                else:
                    self._pull(sums, z, rows, uses, group < groups - 1)

    def _add_below(
        self, sums: Sums, head: Head, rows: Sequence[Tensor], uses: Sequence[ReadUse]
    ) -> None:
        for name, norms in head.norms(rows).items():
            sums[name] += norms
        below = [use for use in uses if use.use is not head.use.use]
        self._pull(sums, head.inputs, head.rows(rows), below, False)

    def _pull(
        self,
        sums: Sums,
        outputs: Tensor,
        rows: Iterable[Tensor],
        uses: Sequence[ReadUse],
        keep_graph: bool,
    ) -> None:
        scale = self.task.scale(outputs)
        add_rows(sums, outputs, rows, uses, self.task.plan.norm, scale, keep_graph)
