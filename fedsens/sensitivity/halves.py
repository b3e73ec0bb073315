"""Samples dealt out at random to two halves, whose maps tell how far one map can be trusted."""

from __future__ import annotations

import torch
from torch import Tensor

from fedsens.sensitivity.batching import Inputs, map_tensors

Batch = tuple[Inputs, Tensor]


class Dealer:
    """Deals samples out to two halves, of sizes that differ by at most one.

    At random and not in turn: where classes alternate in the data (the digits of scikit-learn
    begin 0, 1, 2, ...), even and odd samples are not alike.

    Args:
        seed: of the deal.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._lead = 0  # samples of the first half minus samples of the second

    def deal(self, x: Inputs, y: Tensor) -> tuple[Batch, Batch]:
        """Split a batch.

        Args:
            x: inputs, the batch first.
            y: labels, the batch first.

        Returns:
            Inputs and labels of both halves, in their order; one half may be empty.
        """
        order = torch.randperm(len(y), generator=self._generator)
        coin = int(torch.randint(2, (), generator=self._generator))
        size = max(0, len(y) - self._lead + coin) // 2
        first, second = (half.sort().values.to(y.device) for half in (order[:size], order[size:]))
        self._lead += len(first) - len(second)
        return _chosen(x, y, first), _chosen(x, y, second)


def _chosen(x: Inputs, y: Tensor, index: Tensor) -> Batch:
    return map_tensors(x, lambda tensor: tensor[index]), y[index]
