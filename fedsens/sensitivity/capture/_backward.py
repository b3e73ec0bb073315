"""The rows to pull back, and plain backward passes over a recorded forward pass."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.func import vmap

from fedsens.sensitivity._plan import Plan
from fedsens.sensitivity._task import Sums
from fedsens.sensitivity._tolerance import SLOW, UNSUPPORTED, own_faults_told, refusals
from fedsens.sensitivity.capture._accumulators import Accumulator, make_accumulator
from fedsens.sensitivity.capture._recorder import Operation, ParameterView, left_of
from fedsens.sensitivity.capture._registry import Gradient

WOKEN = "the first gradient reaches it in this batch"

# the first row, its cotangents at some operations, and these, to the parameters that fail
Check = Callable[[Tensor, Sequence["Tensor | None"], Sequence[Operation]], Mapping[str, str]]


def pull_back(
    outputs: Tensor, operations: Sequence[Operation], row: Tensor, scale: float, keep_graph: bool
) -> list[Tensor | None]:
    """One backward pass."""
    if not operations:
        return []
    with refusals("of a backward pass of several samples"):
        found = torch.autograd.grad(
            outputs,
            [one.edge for one in operations],
            (row * scale).to(outputs.dtype),
            retain_graph=keep_graph,
            allow_unused=True,
        )
    cotangents: list[Tensor | None] = []
    for one, d in zip(operations, found, strict=True):
        if d is not None:
            d = d if scale == 1 else d.to(row.dtype) / scale
            d = d.reshape(one.shape)  # an edge may be that of another view of the output
        cotangents.append(d)
    return cotangents


def add_rows(
    sums: Sums,
    outputs: Tensor,
    rows: Iterable[Tensor],
    operations: Sequence[Operation],
    scale: float,
    keep_graph: bool,
    check: Check | None = None,
) -> dict[str, str]:
    """Pull rows, cotangents of the outputs, back and add the sums over samples of their L2 norm.

    Sums are added to in place, except for parameters that fail, which are returned with why. The
    outputs are the logits, or what they depend on through, (K, ...), with the graph, which is kept
    for another call or the check. ``check`` is what the first row's cotangents have to stand.
    """
    accumulators: dict[ParameterView, Accumulator] = {}
    failed: dict[str, str] = {}
    for row, last in _marked(rows):
        cotangents = pull_back(outputs, operations, row, scale, keep_graph or not last)
        found = dict.fromkeys(woken(operations, cotangents), WOKEN)
        if check is not None:
            found |= check(row, cotangents, operations)
            check = None
        kept = {one.index: d for one, d in zip(operations, cotangents, strict=True)}
        operations = left_of(operations, found)
        cotangents = [kept[one.index] for one in operations]
        found |= _accumulate(accumulators, operations, cotangents, len(outputs), row.dtype)
        # what was accumulated of a parameter that fails is dropped
        failed |= found
        operations = left_of(operations, found)
        if not operations:
            break
    for view, accumulator in accumulators.items():
        if view.name not in failed:
            accumulator.finish(view.of(sums[view.name]))
    return failed


def add_sample(
    sums: Sums,
    operations: Sequence[Operation],
    cotangents: Sequence[Tensor | None],
    samples: int,
    chosen: int,
    dtype: torch.dtype,
) -> dict[str, str]:
    """Add the absolute gradients of one of K samples, of one row; what fails, with the reason."""
    accumulators: dict[ParameterView, Accumulator] = {}
    problems = _accumulate(accumulators, operations, cotangents, samples, dtype, chosen)
    for view, accumulator in accumulators.items():
        if view.name not in problems:
            with own_faults_told("adding its gradients", [view.name], problems):
                accumulator.finish(view.of(sums[view.name]))
    return problems


def woken(operations: Sequence[Operation], cotangents: Sequence[Tensor | None]) -> set[str]:
    """Names of parameters whose operation gets its first gradient."""
    pairs = zip(operations, cotangents, strict=True)
    return {name for one, d in pairs if one.wakes(d) for name in one.names}


def _accumulate(
    accumulators: dict[ParameterView, Accumulator],
    operations: Sequence[Operation],
    cotangents: Sequence[Tensor | None],
    samples: int,
    dtype: torch.dtype,
    chosen: int | None = None,
) -> dict[str, str]:
    """Take one row's gradients; names of the parameters that fail, with the reason."""
    problems: dict[str, str] = {}
    gradients: dict[ParameterView, list[Gradient]] = defaultdict(list)
    for one, d in zip(operations, cotangents, strict=True):
        if d is not None and one.axis is not None:
            with own_faults_told(f"the rule of {one.rule.name}", one.names, problems):
                found = one.gradients(d, samples, dtype, chosen)
                problems |= one.without_rule(found)
                for view, gradient in found.items():
                    gradients[view].append(gradient)
    for view, parts in gradients.items():
        if view.name not in problems:
            with own_faults_told("adding its gradients", [view.name], problems):
                if view not in accumulators:
                    accumulators[view] = make_accumulator(parts)
                accumulators[view].add(parts)
    return problems


def _marked(rows: Iterable[Tensor]) -> Iterator[tuple[Tensor, bool]]:
    """Each row, and whether it is the last."""
    before: Tensor | None = None
    for row in rows:
        if before is not None:
            yield before, False
        before = row
    if before is not None:
        yield before, True


# entries of the cotangents that are made at a time
ENTRIES = 2**21


def chunk_rows(
    plan: Plan, z: Tensor, y: Tensor, weights: Tensor | None, group: int
) -> Iterator[Tensor]:
    """Cotangents of the logits, one row after the other.

    Args:
        plan: the map's options.
        z: logits (K, *shape), fp32 or fp64, without a graph.
        y: label vectors, the batch first.
        weights: probes (K, groups, probes, rows), or None for every row.
        group: which group of rows.

    Yields:
        (K, *shape) for each row.
    """
    count = plan.row_count(tuple(z.shape[1:]), y[0]) if weights is None else weights.shape[2]
    step = max(1, ENTRIES // z.numel())
    for start in range(0, count, step):
        chosen = z.new_zeros(min(step, count - start), count)
        chosen.diagonal(start).fill_(1)
        yield from _some_rows(plan, z, y, weights, group, chosen).unbind(1)


def _some_rows(
    plan: Plan, z: Tensor, y: Tensor, weights: Tensor | None, group: int, chosen: Tensor
) -> Tensor:
    """Chosen rows of every sample, (K, rows, *shape)."""

    def of_sample(z: Tensor, y: Tensor, weights: Tensor | None) -> Tensor:
        return plan.groups(z, y, weights)[group].apply(chosen)

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", SLOW)
            in_dims = (0, 0, None if weights is None else 0)
            rows: Tensor = vmap(of_sample, in_dims=in_dims)(z, y, weights)
    except UNSUPPORTED:  # a user's loss that vmap cannot run
        known = [None] * len(z) if weights is None else list(weights)
        rows = torch.stack([of_sample(*one) for one in zip(z, y, known, strict=True)])
    return rows
