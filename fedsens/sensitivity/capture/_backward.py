"""Plain backward passes over a recorded forward pass, folded into the sums."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedsens.sensitivity._task import Sums
from fedsens.sensitivity.capture._folds import Fold, make_fold
from fedsens.sensitivity.capture._recorder import Target, Use
from fedsens.sensitivity.capture._registry import Cotangent, Gradient, SampleAxis, Uncovered

WOKEN = "the first gradient reaches it in this batch"


@dataclass(frozen=True)
class ReadUse:
    """A recorded operation whose sample axis is known.

    Attributes:
        use: the operation.
        axis: its sample axis; None if no gradient has reached it yet (a block that is multiplied
            by zero), which is right as long as none does.
        targets: argument to parameter, for the parameters to be measured.
    """

    use: Use
    axis: SampleAxis | None
    targets: dict[str, Target]

    def without(self, names: Container[str]) -> ReadUse:
        """The same operation without some parameters; possibly without targets."""
        left = {a: t for a, t in self.targets.items() if t.name not in names}
        return self if len(left) == len(self.targets) else replace(self, targets=left)

    def gradients(
        self, d: Tensor, samples: int, dtype: torch.dtype, chosen: int | None = None
    ) -> dict[Target, Gradient]:
        """Per-sample gradients of one cotangent.

        Args:
            d: gradient of the operation's output.
            samples: K.
            dtype: type of the sums.
            chosen: the one sample that is wanted, or None for all.

        Returns:
            Parameter to gradient.

        Raises:
            Uncovered: the operation's rule is about other arguments.
        """
        assert self.axis is not None
        value = self.axis.first(d, samples)
        if chosen is None:
            cotangent = Cotangent(value.to(dtype), self.axis)
        else:
            part = slice(chosen, chosen + 1)
            cotangent = Cotangent(value[part].to(dtype), self.axis, (samples, part))
        by_argument = self.use.gradients(cotangent)
        if lacking := self.targets.keys() - by_argument.keys():
            raise Uncovered(f"{self.use.rule.name} has no rule for {', '.join(sorted(lacking))}")
        return {target: by_argument[name] for name, target in self.targets.items()}

    def wakes(self, d: Tensor | None) -> bool:
        """Whether a gradient reaches it though none had when its samples were looked for."""
        return self.axis is None and d is not None and bool(d.any())


# the first row, its cotangents at some operations, and these, to the parameters that fail
Check = Callable[[Tensor, Sequence["Tensor | None"], Sequence[ReadUse]], Mapping[str, str]]


def left_of(uses: Sequence[ReadUse], names: Container[str]) -> list[ReadUse]:
    """Operations without some parameters, those that have no other left out."""
    return [left for use in uses if (left := use.without(names)).targets]


def pull_back(
    outputs: Tensor, uses: Sequence[Use], row: Tensor, scale: float, keep_graph: bool
) -> list[Tensor | None]:
    """One backward pass.

    Args:
        outputs: what to start from, with its graph.
        uses: operations whose outputs' gradients are wanted.
        row: cotangent of the outputs.
        scale: factor that keeps half precision in range; it is divided out again.
        keep_graph: whether another pass will follow.

    Returns:
        For each operation its cotangent, or None if the outputs do not depend on it.
    """
    if not uses:
        return []
    found = torch.autograd.grad(
        outputs,
        [use.edge for use in uses],
        (row * scale).to(outputs.dtype),
        retain_graph=keep_graph,
        allow_unused=True,
    )
    cotangents: list[Tensor | None] = []
    for use, d in zip(uses, found, strict=True):
        if d is not None:
            d = d if scale == 1 else d.to(row.dtype) / scale
            d = d.reshape(use.shape)  # an edge may be that of another view of the output
        cotangents.append(d)
    return cotangents


def add_rows(
    sums: Sums,
    outputs: Tensor,
    rows: Iterable[Tensor],
    uses: Sequence[ReadUse],
    scale: float,
    keep_graph: bool,
    check: Check | None = None,
) -> dict[str, str]:
    """Pull rows back and add the sums over samples of their L2 norm.

    Args:
        sums: added to in place, except for parameters that fail.
        outputs: the logits, or what they depend on through, (K, ...), with the graph.
        rows: cotangents of the outputs.
        uses: the operations to look at.
        scale: factor on the rows that keeps half precision in range.
        keep_graph: whether another call, or the check, will need the graph.
        check: what the first row's cotangents have to stand.

    Returns:
        Names of the parameters that fail, with the reason.
    """
    folds: dict[Target, Fold] = {}
    failed: dict[str, str] = {}
    for row, last in _marked(rows):
        keep = keep_graph or not last
        pulled = pull_back(outputs, [use.use for use in uses], row, scale, keep)
        found = dict.fromkeys(woken(uses, pulled), WOKEN)
        if check is not None:
            found |= check(row, pulled, uses)
            check = None
        if found:
            # no row has been folded yet, or a gradient woke up late: what was folded is dropped
            failed |= found
            by_use = {id(use.use): d for use, d in zip(uses, pulled, strict=True)}
            uses = left_of(uses, failed)
            pulled = [by_use[id(use.use)] for use in uses]
        if not uses:
            break
        _fold(folds, uses, pulled, len(outputs), row.dtype)
    _finish({target: fold for target, fold in folds.items() if target.name not in failed}, sums)
    return failed


def fold_sample(
    sums: Sums,
    uses: Sequence[ReadUse],
    cotangents: Sequence[Tensor | None],
    samples: int,
    chosen: int,
    dtype: torch.dtype,
) -> None:
    """Add one sample's absolute gradients of one row.

    Args:
        sums: added to in place.
        uses: the operations to look at.
        cotangents: of their outputs.
        samples: K.
        chosen: the sample.
        dtype: type of the sums.
    """
    folds: dict[Target, Fold] = {}
    _fold(folds, uses, cotangents, samples, dtype, chosen)
    _finish(folds, sums)


def woken(uses: Sequence[ReadUse], cotangents: Sequence[Tensor | None]) -> set[str]:
    """Names of parameters whose operation gets its first gradient."""
    awake = (use for use, d in zip(uses, cotangents, strict=True) if use.wakes(d))
    return {target.name for use in awake for target in use.targets.values()}


def _fold(
    folds: dict[Target, Fold],
    uses: Sequence[ReadUse],
    cotangents: Sequence[Tensor | None],
    samples: int,
    dtype: torch.dtype,
    chosen: int | None = None,
) -> None:
    gradients: dict[Target, list[Gradient]] = defaultdict(list)
    for use, d in zip(uses, cotangents, strict=True):
        if d is not None and use.axis is not None:
            for target, gradient in use.gradients(d, samples, dtype, chosen).items():
                gradients[target].append(gradient)
    for target, found in gradients.items():
        if target not in folds:
            folds[target] = make_fold(found)
        folds[target].add(found)


def _finish(folds: dict[Target, Fold], sums: Sums) -> None:
    for target, fold in folds.items():
        fold.finish(target.of(sums[target.name]))


def _marked(rows: Iterable[Tensor]) -> Iterator[tuple[Tensor, bool]]:
    """Each row, and whether it is the last."""
    before: Tensor | None = None
    for row in rows:
        if before is not None:
            yield before, False
        before = row
    if before is not None:
        yield before, True
