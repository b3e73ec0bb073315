"""The rows to pull back, for all samples of a chunk together."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.func import vmap

from fedsens.sensitivity._plan import Plan
from fedsens.sensitivity._tolerance import SLOW, UNSUPPORTED

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
