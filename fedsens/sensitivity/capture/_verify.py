"""Check what is captured against plain autograd.

No list of supported models: what is captured for one sample must equal the gradient of a forward
pass of that sample by itself, for *every* parameter of the map, recorded or not. Parameters that
fail are left to another engine.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Container, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsens.sensitivity._batching import Inputs, map_tensors, part
from fedsens.sensitivity._task import Sums, Task
from fedsens.sensitivity._tolerance import UNSUPPORTED, differing
from fedsens.sensitivity.capture._backward import ReadUse, fold_sample, left_of
from fedsens.sensitivity.capture._locate import NONE, place
from fedsens.sensitivity.capture._recorder import Target, Use
from fedsens.sensitivity.capture._registry import SampleAxis, Uncovered

MIXED = "the logits of a sample depend on the others of its batch"
OVERLAP = "it is used through views that share some of its entries"
UNSEEN = "no operation that takes it was seen, but it has a gradient"


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
    failed: dict[str, str]
    repeated: frozenset[int] = NONE

    def of(self, uses: Sequence[Use]) -> list[ReadUse]:
        """Operations of another batch of the same kind, as far as they are captured.

        Args:
            uses: recorded operations, in the same order.

        Returns:
            Those that take a captured parameter.
        """
        pairs = zip(uses, self.axes, strict=True)
        read = [ReadUse(use, axis, use.targets) for use, axis in pairs]
        return left_of(read, self.failed)


def read(task: Task, x: Inputs, chosen: Sequence[int]) -> Reading:
    """Read the operations of a batch; what is read has to be compared on the first chunk.

    Args:
        task: the task.
        x: inputs, the batch first.
        chosen: the samples to look at; see :mod:`fedsens.sensitivity.capture._locate`.

    Returns:
        The reading.
    """
    with torch.no_grad():
        alone = {k: task.logits(part(x, k, k + 1)) for k in dict.fromkeys(chosen)}
    some = map_tensors(x, lambda tensor: tensor[list(chosen)])
    placing = place(task, some, [alone[k] for k in chosen])
    if placing is None:
        return Reading(None, (), dict.fromkeys(task.parameters, MIXED))
    recorder = placing.recorder
    uses, axes = recorder.uses, tuple(placing.axes)
    failed = recorder.unknown | dict.fromkeys(_overlapping(task, uses), OVERLAP)
    for at, problem in placing.problems.items():
        failed |= dict.fromkeys(uses[at].names, problem)
    return Reading(recorder.kind, axes, failed, recorder.repeated)


def _overlapping(task: Task, uses: Sequence[Use]) -> list[str]:
    """Parameters with an entry in several views, such as a table and its first rows.

    Norms are folded view by view, and the norm of a sum is not the sum of norms. The check alone
    would not do: it sees that only in a sample whose gradients of both views meet in an entry.
    """
    views: dict[str, set[Target]] = defaultdict(set)
    for use in uses:
        for target in use.targets.values():
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
    read: Sequence[ReadUse],
    cotangents: Sequence[Tensor | None],
    row: Tensor,
    chosen: int,
    alone: Tensor,
    failed: Container[str],
) -> dict[str, str]:
    """Compare what is captured for one sample with the gradient of that sample's own logits.

    Args:
        task: the task.
        read: the operations that are captured.
        cotangents: of their outputs.
        row: cotangent of the logits that they come from, the batch first.
        chosen: the sample.
        alone: its logits by itself, with their graph.
        failed: parameters that another engine serves already.

    Returns:
        Names of all other parameters for which the two differ, with the reason.
    """
    names = [name for name in task.parameters if name not in failed]
    if not names or not alone.requires_grad:
        return {}
    expected = _autograd(task, names, alone, row[chosen : chosen + 1])
    got = {n: v.new_zeros(v.shape) for n, v in expected.items()}  # contiguous, as sums are
    problems = {}
    with torch.no_grad():
        try:
            fold_sample(got, read, cotangents, len(row), chosen, row.dtype)
        except UNSUPPORTED:  # one by one, to see whose rule it is
            for value in got.values():
                value.zero_()
            problems = _one_by_one(got, read, cotangents, row, chosen)
    seen = {target.name for use in read for target in use.targets.values()}
    unseen = [n for n in names if n not in seen and bool(expected[n].any())]
    dtypes = {name: task.parameters[name].dtype for name in expected}
    wrong = differing(got, expected, dtypes)
    return (
        dict.fromkeys(wrong, "it differs from autograd") | dict.fromkeys(unseen, UNSEEN) | problems
    )


def _one_by_one(
    got: Sums,
    read: Sequence[ReadUse],
    cotangents: Sequence[Tensor | None],
    row: Tensor,
    chosen: int,
) -> dict[str, str]:
    """Fold each parameter by itself; names of those whose rule raises, with the reason."""
    problems: dict[str, str] = {}
    for name in got:
        others = got.keys() - {name}
        pairs = [
            (use, d)
            for one, d in zip(read, cotangents, strict=True)
            if (use := one.without(others)).targets
        ]
        try:
            uses, pulled = [use for use, _ in pairs], [d for _, d in pairs]
            fold_sample(got, uses, pulled, len(row), chosen, row.dtype)
        except Uncovered as error:
            problems[name] = str(error)
        except UNSUPPORTED as error:
            rules = " and ".join(sorted({use.use.rule.name for use, _ in pairs}))
            problems[name] = f"{type(error).__name__} in its rule"
            warnings.warn(
                f"the rule of {rules} raised {type(error).__name__}: {error}; the parameter {name} "
                "is left to a slower engine, which is right but should not be needed",
                stacklevel=2,
            )
    return problems


def _autograd(task: Task, names: Sequence[str], alone: Tensor, cotangent: Tensor) -> Sums:
    """|gradient| of one sample by itself."""
    scale = task.scale(alone)
    leaves = [task.parameters[name] for name in names]
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
