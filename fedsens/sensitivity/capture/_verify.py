"""Find the samples in recorded operations, and check what is captured against plain autograd.

Multiplying each sample's cotangent of the logits by a factor of its own multiplies that sample's
part of every gradient by the same factor, and no other reading of the axes. The samples looked at
are two, with the first of them once more at the end: what depends on a sample's values (its
length) and not on its place in the batch cannot be taken for the sample axis then, because the
same values are at two places. What has the samples nowhere may be the same for all of them, such
as positions; it is then tried whether the model gives the same when the operation runs once for
every sample.

There is no list of supported models: what is captured for one sample must equal the gradient of a
forward pass of that sample by itself, for *every* parameter of the map, recorded or not. Parameters
that fail are left to another engine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Hashable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedsens.sensitivity._batching import Inputs, map_tensors, part
from fedsens.sensitivity._task import Sums, Task, accumulation_dtype
from fedsens.sensitivity._tolerance import Uncovered, differing, refusals
from fedsens.sensitivity.capture._backward import add_sample, pull_back
from fedsens.sensitivity.capture._recorder import Operation, ParameterView, Recorder, left_of
from fedsens.sensitivity.capture._registry import SampleAxis, candidates

NONE: frozenset[int] = frozenset()


@dataclass(frozen=True)
class SampleAxes:
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
    """One forward pass."""
    recorder = Recorder(task.parameters, samples, repeated)
    with recorder, refusals("with several samples" if samples > 1 else "with one sample"):
        z = task.logits(x, samples)
    return recorder, z


def place(task: Task, x: Inputs, alone: Sequence[Tensor]) -> SampleAxes | None:
    """Find the samples."""
    found = _place(task, x, alone, NONE)
    if found is None:
        return None
    for at in found.nowhere:
        if at in found.nowhere:  # not helped by what was tried before
            found = _repeated(task, x, alone, found, at)
    return found


def mixes(task: Task, x: Inputs, z: Tensor, chosen: Sequence[int]) -> bool:
    """Whether logits of samples in a batch differ from those of each of them alone."""
    with torch.no_grad(), refusals("of the model with one sample"):
        alone = [task.logits(part(x, k, k + 1)) for k in chosen]
    return differ(z[list(chosen)], alone)


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


def _repeated(
    task: Task, x: Inputs, alone: Sequence[Tensor], found: SampleAxes, at: int
) -> SampleAxes:
    """The same with one more operation run once for every sample, if that helps."""
    try:
        tried = _place(task, x, alone, found.recorder.repeated | {at})
    except Uncovered:
        return found
    return found if tried is None or at in tried.problems else tried


def _place(
    task: Task, x: Inputs, alone: Sequence[Tensor], repeated: frozenset[int]
) -> SampleAxes | None:
    recorder, z = record(task, x, len(alone), repeated)
    operations, scale = recorder.operations, task.scale(z)
    if differ(z, alone):
        return None
    if not z.requires_grad:
        return SampleAxes(recorder, [None] * len(operations))
    row = _random_row(z)
    factors = random_factors(len(alone), row)
    # the same row twice, the second time with a factor for each sample: where the samples are, the
    # second gradient is the first times the factors
    pulled = pull_back(z, operations, row, scale, True)
    scaled = pull_back(z, operations, scaled_by(row, factors), scale, False)
    found = SampleAxes(recorder)
    for one, d, e in zip(operations, pulled, scaled, strict=True):
        axis = None
        if d is not None and e is not None and bool(d.any()):
            axis = next(
                (a for a in candidates(one.shape, len(factors)) if a.holds(d, e, factors)), None
            )
            if axis is None:
                found.problems[one.index] = f"{one.rule.name} mixes the samples"
                if one.takes_others:
                    found.nowhere.append(one.index)
        found.axes.append(axis)
    return found


def _random_row(z: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    row = torch.randn(z.shape, generator=generator, dtype=accumulation_dtype(z.dtype))
    return row.to(z.device)


MIXED = "the logits of a sample depend on the others of its batch"
OVERLAP = "it is used through views that share some of its entries"
UNSEEN = "no operation that takes it was seen, but it has a gradient"


@dataclass(frozen=True)
class Verification:
    """How the operations of one kind of batch are read.

    Attributes:
        kind: what the batches have in common; see :meth:`Recorder.kind`.
        axes: sample axis of each recorded operation, or None where it is not known.
        failed: parameter's name to why it is left to another engine.
        repeated: operations that have to run once for every sample; see :class:`Recorder`.
    """

    kind: Hashable
    axes: tuple[SampleAxis | None, ...]
    failed: dict[str, str]
    repeated: frozenset[int] = NONE

    def of(self, operations: Sequence[Operation]) -> list[Operation]:
        """Operations of another batch of the same kind, as far as they are captured."""
        pairs = zip(operations, self.axes, strict=True)
        return left_of((replace(one, axis=axis) for one, axis in pairs), self.failed)


def read(task: Task, x: Inputs, chosen: Sequence[int]) -> Verification:
    """Read the operations of a batch; what is read has to be compared on the first chunk."""
    with torch.no_grad(), refusals("of the model with one sample"):
        alone = {k: task.logits(part(x, k, k + 1)) for k in dict.fromkeys(chosen)}
    some = map_tensors(x, lambda tensor: tensor[list(chosen)])
    found_axes = place(task, some, [alone[k] for k in chosen])
    if found_axes is None:
        return Verification(None, (), dict.fromkeys(task.parameters, MIXED))
    recorder = found_axes.recorder
    operations, axes = recorder.operations, tuple(found_axes.axes)
    failed = recorder.unknown | dict.fromkeys(_overlapping(task, operations), OVERLAP)
    for at, problem in found_axes.problems.items():
        failed |= dict.fromkeys(operations[at].names, problem)
    return Verification(recorder.kind, axes, failed, recorder.repeated)


def _overlapping(task: Task, operations: Sequence[Operation]) -> list[str]:
    """Parameters with an entry in several views, such as a table and its first rows.

    Norms are folded view by view, and the norm of a sum is not the sum of norms. The check alone
    would not do: it sees that only in a sample whose gradients of both views meet in an entry.
    """
    views: dict[str, set[ParameterView]] = defaultdict(set)
    for one in operations:
        for target in one.targets.values():
            views[target.name].add(target)
    overlapping = []
    for name, found in views.items():
        if any(target.view for target in found):
            parameter = task.parameters[name]
            place = torch.arange(parameter.numel()).view(parameter.shape)
            places = torch.cat([target.of(place).reshape(-1) for target in found])
            if int(torch.bincount(places).max()) > 1:
                overlapping.append(name)
    return overlapping


def differences(
    task: Task,
    read: Sequence[Operation],
    cotangents: Sequence[Tensor | None],
    row: Tensor,
    chosen: int,
    alone: Tensor,
    failed: Container[str],
) -> dict[str, str]:
    """Compare what is captured for one sample with the gradient of that sample's own logits."""
    names = [name for name in task.parameters if name not in failed]
    if not names or not alone.requires_grad:
        return {}
    expected = _autograd(task, names, alone, row[chosen : chosen + 1])
    got = {n: v.new_zeros(v.shape) for n, v in expected.items()}  # contiguous, as sums are
    left = [one.without(failed) for one in read]
    with torch.no_grad():
        problems = add_sample(got, left, cotangents, len(row), chosen, row.dtype)
    seen = {name for one in read for name in one.names}
    unseen = [n for n in names if n not in seen and bool(expected[n].any())]
    dtypes = {name: task.parameters[name].dtype for name in expected}
    wrong = differing(got, expected, dtypes)
    return (
        dict.fromkeys(wrong, "it differs from autograd") | dict.fromkeys(unseen, UNSEEN) | problems
    )


def _autograd(task: Task, names: Sequence[str], alone: Tensor, cotangent: Tensor) -> Sums:
    """|gradient| of one sample by itself."""
    scale = task.scale(alone)
    leaves = [task.parameters[name] for name in names]
    with refusals("of a backward pass of one sample"):
        grads = torch.autograd.grad(
            alone,
            leaves,
            (cotangent * scale).to(alone.dtype),
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
    dense = (g.to_dense() if g.is_sparse else g for g in grads)
    kind = cotangent.dtype
    return {n: (g.to(kind) / scale).abs_() for n, g in zip(names, dense, strict=True)}
