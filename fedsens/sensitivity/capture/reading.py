"""Find the samples in recorded operations, and check the result against plain autograd.

No list of supported models: on the first samples of every kind of batch, a random cotangent on one
sample alone shows where that sample lies in each operation's output, and what is captured for it
must equal the gradient of a forward pass of that sample by itself. Parameters that fail are left to
another engine.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsens.sensitivity.batching import Inputs, part
from fedsens.sensitivity.capture.backward import ReadUse, fold_row, pull_back
from fedsens.sensitivity.capture.recorder import Recorder, Use
from fedsens.sensitivity.capture.samples import SampleAxis, candidates
from fedsens.sensitivity.task import Sums, Task, wide
from fedsens.sensitivity.tolerance import differing
from fedsens.sensitivity.unsupported import UNSUPPORTED

MIXED = "the logits of a sample depend on the others of its batch"
NONE: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Reading:
    """How the operations of one kind of batch are read.

    Attributes:
        kind: what the batches have in common; see :meth:`Recorder.kind`.
        axes: sample axis of each recorded operation, or None where it is not known.
        failed: parameter's name to why it is left to another engine.
        repeated: operations that have to run once for every sample; see :class:`Recorder`.
        unplaced: operations in which no axis has the samples.
    """

    kind: Hashable
    axes: tuple[SampleAxis | None, ...]
    failed: Mapping[str, str]
    repeated: frozenset[int] = NONE
    unplaced: tuple[int, ...] = ()

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


def record(
    task: Task, x: Inputs, samples: int, repeated: frozenset[int] = NONE
) -> tuple[Recorder, Tensor]:
    """One forward pass.

    Args:
        task: the task.
        x: inputs, the batch first.
        samples: how many they are.
        repeated: operations to run once for every sample; see :class:`Recorder`.

    Returns:
        What it recorded, and the logits with their graph.
    """
    recorder = Recorder(task.parameters, samples, repeated)
    with recorder:
        z = task.logits(x, samples)
    return recorder, z


def read(task: Task, x: Inputs, samples: int) -> Reading:
    """Read the operations of a batch.

    An operation without the samples on any axis may take what is the same for all of them, such
    as positions; it is then tried whether the model gives the same when it runs once for every
    sample.

    Args:
        task: the task.
        x: inputs of a few samples, the batch first.
        samples: how many they are.

    Returns:
        The reading.
    """
    reading = _read(task, x, samples, NONE)
    for at in reading.unplaced:
        if at in reading.unplaced:
            try:
                tried = _read(task, x, samples, reading.repeated | {at})
            except UNSUPPORTED:
                continue
            if len(tried.failed) < len(reading.failed):
                reading = tried
    return reading


def _read(task: Task, x: Inputs, samples: int, repeated: frozenset[int]) -> Reading:
    recorder, z = record(task, x, samples, repeated)
    uses, failed, kind = recorder.uses, dict(recorder.unknown), recorder.kind
    nowhere = (None,) * len(uses)
    if not z.requires_grad:
        return Reading(kind, nowhere, failed)
    alone = [task.logits(part(x, k, k + 1)) for k in range(samples)]
    if _differ(z, alone):
        return Reading(kind, nowhere, dict.fromkeys(task.parameters, MIXED))
    rows = {k: _row(z, k) for k in sorted({0, samples - 1})}
    pulled = {k: pull_back(z, uses, row, task.scale(z), True) for k, row in rows.items()}
    axes, unplaced = [], []
    for at, use in enumerate(uses):
        axis, problem = _axis(use, {k: found[at] for k, found in pulled.items()}, samples)
        axes.append(axis)
        failed |= {} if problem is None else dict.fromkeys(use.names, problem)
        if problem is not None and use.takes_others:
            unplaced.append(at)
    for k, row in rows.items():
        read = Reading(kind, tuple(axes), failed).of(uses)
        failed |= _differences(task, read, pulled[k], uses, row, alone[k])
    return Reading(kind, tuple(axes), failed, repeated, tuple(unplaced))


def mixes(task: Task, x: Inputs, z: Tensor) -> bool:
    """Whether a batch's logits differ from those of each of its samples alone.

    Args:
        task: the task.
        x: inputs, the batch first.
        z: their logits.

    Returns:
        True if a sample has no logits of its own.
    """
    with torch.no_grad():
        return _differ(z, [task.logits(part(x, k, k + 1)) for k in range(len(z))])


def _differ(z: Tensor, alone: Sequence[Tensor]) -> bool:
    got, expected = z.detach().clone(), torch.cat([one.detach() for one in alone])
    return bool(differing({"logits": got}, {"logits": expected}, {"logits": z.dtype}))


def _row(z: Tensor, k: int) -> Tensor:
    """A cotangent of the logits that is random on sample k and zero elsewhere."""
    generator = torch.Generator().manual_seed(k)
    row = torch.zeros(z.shape, dtype=wide(z.dtype), device=z.device)
    row[k] = torch.randn(z.shape[1:], generator=generator, dtype=row.dtype)
    return row


def _axis(
    use: Use, pulled: Mapping[int, Tensor | None], samples: int
) -> tuple[SampleAxis | None, str | None]:
    """Where the samples are, and what is wrong if that is not known."""
    found = {k: d for k, d in pulled.items() if d is not None}
    if not found:
        return None, None  # the logits do not depend on it
    if not any(bool(d.any()) for d in found.values()):
        return None, f"{use.rule.name} has no gradient on the first samples"
    for axis in candidates(tuple(use.shape), samples):
        if all(axis.holds(d, samples, k) for k, d in found.items()):
            return axis, None
    return None, f"{use.rule.name} mixes the samples"


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
