"""When a map has seen enough samples: two halves of them that agree."""

from __future__ import annotations

import torch
from torch import Tensor

from fedsens.errors import SensitivityError
from fedsens.sensitivity._batching import Inputs, map_tensors
from fedsens.sensitivity._map import SensitivityMap, map_overlap


class StoppingRule:
    """Stops a map once its two halves agree.

    The halves are the maps of two random halves of the samples. To compare them costs two
    selections over all parameters, so it is done at a number of samples that grows geometrically.
    The whole map, of twice the samples, is closer to the map of all data than its halves are to
    each other.

    Args:
        target: overlap of the halves to reach, in (0, 1]; 0.9 is a good one.
        ratio: the share to select, see :func:`map_overlap`.
        first: number of samples at which to compare first.
        growth: factor to the next number of samples.

    Attributes:
        history: the samples and the overlap of each comparison.

    Raises:
        SensitivityError: a number is out of range.
    """

    def __init__(
        self, target: float, ratio: float = 0.1, first: int = 64, growth: float = 1.5
    ) -> None:
        if not 0 < target <= 1 or not 0 < ratio <= 1 or first < 2 or not growth > 1:
            raise SensitivityError(
                "expected a target and a ratio in (0, 1], a first comparison at 2 samples or more "
                f"and a growth above 1, got {target}, {ratio}, {first} and {growth}"
            )
        self.target, self.ratio, self.first, self.growth = target, ratio, first, growth
        self.history: list[tuple[int, float]] = []

    def due(self, count: int) -> bool:
        """Whether the halves should be compared.

        Args:
            count: samples in both halves together.

        Returns:
            True once the next number of samples is reached.
        """
        return count >= (self.growth * self.history[-1][0] if self.history else self.first)

    def reached(self, first: SensitivityMap, second: SensitivityMap) -> bool:
        """Compare the halves, and note the result.

        Args:
            first: map of one half of the samples so far.
            second: map of the other half.

        Returns:
            Whether they agree enough to stop.
        """
        overlap = map_overlap(first, second, self.ratio)
        self.history.append((first.count + second.count, overlap))
        return overlap >= self.target


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
