"""Check what is captured against plain autograd.

No list of supported models: on the first samples of every kind of batch, what is captured for one
sample must equal the gradient of a forward pass of that sample by itself. Parameters that fail are
left to another engine.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsens.sensitivity.batching import Inputs, part
from fedsens.sensitivity.capture.backward import ReadUse, fold_row
from fedsens.sensitivity.capture.placing import NONE, place
from fedsens.sensitivity.capture.recorder import Use
from fedsens.sensitivity.capture.samples import SampleAxis
from fedsens.sensitivity.task import Sums, Task
from fedsens.sensitivity.tolerance import differing
from fedsens.sensitivity.unsupported import UNSUPPORTED

MIXED = "the logits of a sample depend on the others of its batch"


@dataclass(frozen=True)
class Reading:
    """How the operations of one kind of batch are read.

    Attributes:
        kind: what the batches have in common; see :meth:`Recorder.kind`.
        axes: sample axis of each recorded operation, or None where it is not known.
        failed: parameter's name to why it is left to another engine.
        repeated: operations that have to run once for every sample; see :class:`Recorder`.
    """

    kind: Hashable
    axes: tuple[SampleAxis | None, ...]
    failed: Mapping[str, str]
    repeated: frozenset[int] = NONE

    def of(self, uses: Sequence[Use]) -> list[ReadUse]:
        """Operations of another batch of the same kind, as far as they are captured.

        Args:
            uses: recorded operations, in the same order.

        Returns:
            Those that take a captured parameter.
        """
        pairs = zip(uses, self.axes, strict=True)
        read = [ReadUse(use, axis, use.without(self.failed)) for use, axis in pairs if axis]
        return [use for use in read if use.targets]


def read(task: Task, x: Inputs, samples: int) -> Reading:
    """Read the operations of a batch.

    Args:
        task: the task.
        x: inputs of a few samples, the batch first.
        samples: how many they are.

    Returns:
        The reading.
    """
    alone = [task.logits(part(x, k, k + 1)) for k in range(samples)]
    placing = place(task, x, alone)
    if placing is None:
        return Reading(None, (), dict.fromkeys(task.parameters, MIXED))
    recorder = placing.recorder
    uses, axes, failed = recorder.uses, tuple(placing.axes), dict(recorder.unknown)
    for at, problem in placing.problems.items():
        failed |= dict.fromkeys(uses[at].names, problem)
    for k, row in placing.rows.items():
        read = Reading(recorder.kind, axes, failed).of(uses)
        failed |= _differences(task, read, placing.pulled[k], uses, row, alone[k])
    return Reading(recorder.kind, axes, failed, recorder.repeated)


def _differences(
    task: Task,
    read: Sequence[ReadUse],
    pulled: Sequence[Tensor | None],
    uses: Sequence[Use],
    row: Tensor,
    alone: Tensor,
) -> dict[str, str]:
    """Compare what is captured for one sample with the gradient of that sample's own logits."""
    by_use = {id(use): d for use, d in zip(uses, pulled, strict=True)}
    cotangents = [by_use[id(use.use)] for use in read]
    names = sorted({target.name for use in read for target in use.targets.values()})
    if not names:
        return {}
    expected = _autograd(task, names, alone, row)
    got = {n: v.new_zeros(v.shape) for n, v in expected.items()}  # contiguous, as sums are
    failed: dict[str, str] = {}
    with torch.no_grad():
        try:
            fold_row(got, read, cotangents, len(row), row.dtype)
        except UNSUPPORTED:  # one by one, to see whose rule it is
            for name in names:
                try:
                    got[name].zero_()
                    one = [use.only(name) for use in read]
                    fold_row(got, one, cotangents, len(row), row.dtype)
                except UNSUPPORTED as error:
                    failed[name] = f"{type(error).__name__} in its rule"
    dtypes = {name: task.parameters[name].dtype for name in expected}
    wrong = differing(got, expected, dtypes)
    return dict.fromkeys(wrong, "it differs from autograd") | failed


def _autograd(task: Task, names: Sequence[str], alone: Tensor, row: Tensor) -> Sums:
    """|gradient| of one sample by itself."""
    scale = task.scale(alone)
    (cotangent,) = (one[None] for one in row if bool(one.any()))
    leaves = [task.parameters[name] for name in names]
    grads = torch.autograd.grad(
        alone,
        leaves,
        (cotangent * scale).to(alone.dtype),
        allow_unused=True,
        materialize_grads=True,
    )
    dense = (g.to_dense() if g.is_sparse else g for g in grads)
    return {n: (g.to(row.dtype) / scale).abs_() for n, g in zip(names, dense, strict=True)}
