"""Find the samples in recorded operations: which axis of each output they lie on.

A random cotangent on one sample's logits alone shows where that sample is. What has the samples
nowhere may be the same for all of them, such as positions; it is then tried whether the model
gives the same when the operation runs once for every sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedsens.sensitivity.batching import Inputs, part
from fedsens.sensitivity.capture.backward import pull_back
from fedsens.sensitivity.capture.recorder import Recorder, Use
from fedsens.sensitivity.capture.samples import SampleAxis, candidates
from fedsens.sensitivity.task import Task, wide
from fedsens.sensitivity.tolerance import differing
from fedsens.sensitivity.unsupported import UNSUPPORTED

NONE: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Placing:
    """Where the samples of one batch are.

    Attributes:
        recorder: the operations.
        rows: sample to a cotangent of the logits that is random on it and zero elsewhere.
        pulled: sample to the cotangents of the operations' outputs, None where there is none.
        axes: sample axis of each operation, or None where it is not known.
        problems: operation to what is wrong with it.
        nowhere: those in which no axis has the samples.
    """

    recorder: Recorder
    rows: dict[int, Tensor] = field(default_factory=dict)
    pulled: dict[int, list[Tensor | None]] = field(default_factory=dict)
    axes: list[SampleAxis | None] = field(default_factory=list)
    problems: dict[int, str] = field(default_factory=dict)
    nowhere: list[int] = field(default_factory=list)


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


def place(task: Task, x: Inputs, alone: Sequence[Tensor]) -> Placing | None:
    """Find the samples.

    Args:
        task: the task.
        x: inputs of a few samples, the batch first.
        alone: the logits of each of them by itself.

    Returns:
        Where they are; None if their logits in a batch are others.
    """
    found = _place(task, x, alone, NONE)
    if found is None:
        return None
    for at in found.nowhere:
        if at in found.nowhere:  # not helped by what was tried before
            found = _repeated(task, x, alone, found, at)
    return found


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


def _repeated(task: Task, x: Inputs, alone: Sequence[Tensor], found: Placing, at: int) -> Placing:
    """The same with one more operation run once for every sample, if that helps."""
    try:
        tried = _place(task, x, alone, found.recorder.repeated | {at})
    except UNSUPPORTED:
        return found
    return found if tried is None or at in tried.problems else tried


def _place(
    task: Task, x: Inputs, alone: Sequence[Tensor], repeated: frozenset[int]
) -> Placing | None:
    samples = len(alone)
    recorder, z = record(task, x, samples, repeated)
    uses = recorder.uses
    if _differ(z, alone):
        return None
    if not z.requires_grad:
        return Placing(recorder, axes=[None] * len(uses))
    rows = {k: _row(z, k) for k in sorted({0, samples - 1})}
    pulled = {k: pull_back(z, uses, row, task.scale(z), True) for k, row in rows.items()}
    placing = Placing(recorder, rows, pulled)
    for at, use in enumerate(uses):
        seen = {k: d for k, found in pulled.items() if (d := found[at]) is not None}
        reached = any(bool(d.any()) for d in seen.values())
        axis = _axis(use, seen, samples) if reached else None
        placing.axes.append(axis)
        if reached and axis is None:
            placing.problems[at] = f"{use.rule.name} mixes the samples"
            if use.takes_others:
                placing.nowhere.append(at)
        elif seen and not reached:
            placing.problems[at] = f"{use.rule.name} has no gradient on the first samples"
    return placing


def _row(z: Tensor, k: int) -> Tensor:
    """A cotangent of the logits that is random on sample k and zero elsewhere."""
    generator = torch.Generator().manual_seed(k)
    row = torch.zeros(z.shape, dtype=wide(z.dtype), device=z.device)
    row[k] = torch.randn(z.shape[1:], generator=generator, dtype=row.dtype)
    return row


def _axis(use: Use, seen: Mapping[int, Tensor], samples: int) -> SampleAxis | None:
    """Where the samples are; None if no axis has them."""
    for axis in candidates(tuple(use.shape), samples):
        if all(axis.holds(d, samples, k) for k, d in seen.items()):
            return axis
    return None
