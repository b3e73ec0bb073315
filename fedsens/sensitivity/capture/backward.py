"""Plain backward passes over a recorded forward pass, folded into the sums."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedsens.sensitivity.capture.folds import Fold, make_fold
from fedsens.sensitivity.capture.gradients import Gradient
from fedsens.sensitivity.capture.recorder import Target, Use
from fedsens.sensitivity.capture.registry import Cotangent
from fedsens.sensitivity.capture.samples import SampleAxis
from fedsens.sensitivity.norms import NORMS, Norm
from fedsens.sensitivity.task import Sums


@dataclass(frozen=True)
class ReadUse:
    """A recorded operation whose sample axis is known.

    Attributes:
        use: the operation.
        axis: its sample axis.
        targets: argument to parameter, for the parameters to be measured.
    """

    use: Use
    axis: SampleAxis
    targets: dict[str, Target]

    def only(self, name: str) -> ReadUse:
        """The same operation with one parameter only.

        Args:
            name: of the parameter.

        Returns:
            The operation, possibly without targets.
        """
        return replace(self, targets={a: t for a, t in self.targets.items() if t.name == name})

    def gradients(self, d: Tensor, samples: int, dtype: torch.dtype) -> dict[Target, Gradient]:
        """Per-sample gradients of one cotangent.

        Args:
            d: gradient of the operation's output.
            samples: K.
            dtype: type of the sums.

        Returns:
            Parameter to gradient.
        """
        cotangent = Cotangent(self.axis.first(d, samples).to(dtype), self.axis)
        by_argument = self.use.gradients(cotangent)
        return {target: by_argument[name] for name, target in self.targets.items()}


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
    found = torch.autograd.grad(
        outputs,
        [use.edge for use in uses],
        (row * scale).to(outputs.dtype),
        retain_graph=keep_graph,
        allow_unused=True,
    )
    return [d if d is None or scale == 1 else d.to(row.dtype) / scale for d in found]


def add_rows(
    sums: Sums,
    outputs: Tensor,
    rows: Iterable[Tensor],
    uses: Sequence[ReadUse],
    norm: Norm,
    scale: float,
    keep_graph: bool,
) -> None:
    """Pull rows back and add the sums over samples of their norm.

    Args:
        sums: added to in place.
        outputs: the logits, or what they depend on through, (K, ...), with the graph.
        rows: cotangents of the outputs.
        uses: the operations to look at.
        norm: over rows.
        scale: factor on the rows that keeps half precision in range.
        keep_graph: whether another call will need the graph.
    """
    if not uses:
        return
    folds: dict[Target, Fold] = {}
    for row, last in _marked(rows):
        keep = keep_graph or not last
        cotangents = pull_back(outputs, [use.use for use in uses], row, scale, keep)
        # of one row, every norm is the absolute value
        over = NORMS["l1"] if last and not folds else norm
        _fold(folds, uses, cotangents, len(outputs), row.dtype, over)
    _finish(folds, sums)


def fold_row(
    sums: Sums,
    uses: Sequence[ReadUse],
    cotangents: Sequence[Tensor | None],
    samples: int,
    dtype: torch.dtype,
) -> None:
    """Add the sums over samples of one row's absolute gradients.

    Args:
        sums: added to in place.
        uses: the operations to look at.
        cotangents: of their outputs.
        samples: K.
        dtype: type of the sums.
    """
    folds: dict[Target, Fold] = {}
    _fold(folds, uses, cotangents, samples, dtype, NORMS["l1"])
    _finish(folds, sums)


def _fold(
    folds: dict[Target, Fold],
    uses: Sequence[ReadUse],
    cotangents: Sequence[Tensor | None],
    samples: int,
    dtype: torch.dtype,
    norm: Norm,
) -> None:
    gradients: dict[Target, list[Gradient]] = defaultdict(list)
    for use, d in zip(uses, cotangents, strict=True):
        if d is not None and use.targets:
            for target, gradient in use.gradients(d, samples, dtype).items():
                gradients[target].append(gradient)
    for target, found in gradients.items():
        if target not in folds:
            folds[target] = make_fold(found, norm)
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
