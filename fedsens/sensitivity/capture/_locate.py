"""Find the samples in recorded operations: which axis of each output they lie on.

Multiplying each sample's cotangent of the logits by a factor of its own multiplies that sample's
part of every gradient by the same factor, and no other reading of the axes. The samples looked at
are two, with the first of them once more at the end: what depends on a sample's values (its
length) and not on its place in the batch cannot be taken for the sample axis then, because the
same values are at two places.

What has the samples nowhere may be the same for all of them, such as positions; it is then tried
whether the model gives the same when the operation runs once for every sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedsens.sensitivity._batching import Inputs, part
from fedsens.sensitivity._task import Task, wide
from fedsens.sensitivity._tolerance import UNSUPPORTED, differing
from fedsens.sensitivity.capture._backward import pull_back
from fedsens.sensitivity.capture._recorder import Recorder, Use
from fedsens.sensitivity.capture._registry import SampleAxis, candidates

NONE: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Placing:
    """Where the samples of one batch are.

    Attributes:
        recorder: the operations.
        axes: sample axis of each operation, or None where it is not known.
        problems: operation to what is wrong with it.
        nowhere: those in which no axis has the samples.
    """

    recorder: Recorder
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


def mixes(task: Task, x: Inputs, z: Tensor, chosen: Sequence[int]) -> bool:
    """Whether logits of samples in a batch differ from those of each of them alone.

    Args:
        task: the task.
        x: inputs, the batch first.
        z: their logits.
        chosen: the samples to look at.

    Returns:
        True if one of them has no logits of its own.
    """
    with torch.no_grad():
        return differ(z[list(chosen)], [task.logits(part(x, k, k + 1)) for k in chosen])


def differ(z: Tensor, alone: Sequence[Tensor]) -> bool:
    """Whether samples' logits in a batch are other than those of each of them alone."""
    expected = torch.cat([one.detach() for one in alone])
    if expected.shape != z.shape:
        return True
    got = z.detach().clone()
    return bool(differing({"logits": got}, {"logits": expected}, {"logits": z.dtype}))


def random_factors(samples: int, like: Tensor) -> Tensor:
    """A factor for each sample, (K,): powers of two of either sign, which change no rounding."""
    order = torch.arange(samples, device=like.device)
    return ((-2.0) ** (order % 3) * (-1.0) ** (order // 3)).to(like.dtype)


def scaled_by(row: Tensor, factors: Tensor) -> Tensor:
    """A cotangent of the logits with each sample's part times its factor."""
    return row * factors.view(-1, *(1,) * (row.ndim - 1))


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
    recorder, z = record(task, x, len(alone), repeated)
    uses, scale = recorder.uses, task.scale(z)
    if differ(z, alone):
        return None
    if not z.requires_grad:
        return Placing(recorder, [None] * len(uses))
    row = _random_row(z)
    factors = random_factors(len(alone), row)
    # the same row twice, the second time with a factor for each sample: where the samples are, the
    # second gradient is the first times the factors
    pulled = pull_back(z, uses, row, scale, True)
    scaled = pull_back(z, uses, scaled_by(row, factors), scale, False)
    placing = Placing(recorder)
    for at, (use, d, e) in enumerate(zip(uses, pulled, scaled, strict=True)):
        reached = d is not None and e is not None and bool(d.any())
        axis = _axis(use, d, e, factors) if reached else None
        placing.axes.append(axis)
        if reached and axis is None:
            placing.problems[at] = f"{use.rule.name} mixes the samples"
            if use.takes_others:
                placing.nowhere.append(at)
    return placing


def _random_row(z: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    row = torch.randn(z.shape, generator=generator, dtype=wide(z.dtype))
    return row.to(z.device)


def _axis(use: Use, d: Tensor | None, scaled: Tensor | None, factors: Tensor) -> SampleAxis | None:
    """Where the samples are; None if no axis has them."""
    assert d is not None
    assert scaled is not None
    for axis in candidates(tuple(use.shape), len(factors)):
        if axis.holds(d, scaled, factors):
            return axis
    return None
