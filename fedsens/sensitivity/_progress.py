"""How far a map is and what it will cost, and when it ends: enough samples, or nobody waits."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedsens.errors import MapTimeoutError, SensitivityError
from fedsens.sensitivity._batching import Inputs, map_tensors, split_batch
from fedsens.sensitivity._map import SensitivityMap, map_overlap

LOGGER = logging.getLogger(__name__)
# expected seconds from which on a map's cost is a warning
LONG = 60.0


@dataclass(frozen=True)
class MapProgress:
    """How far a map is.

    Attributes:
        samples: that have been added.
        total: how many there will be, or None if the batches do not say.
        passes: backward passes per sample in the last batch.
        exact: whether every row was used in the last batch, and not random probes.
        chunk: samples that ran side by side.
        seconds: wall time since the start.
    """

    samples: int
    total: int | None
    passes: int
    exact: bool
    chunk: int
    seconds: float

    @property
    def seconds_left(self) -> float | None:
        """Expected seconds to the end, or None if it is not known."""
        if self.total is None or not self.samples:
            return None
        return self.seconds / self.samples * max(0, self.total - self.samples)


@dataclass
class Meter:
    """Measures one map.

    Attributes:
        timeout: seconds after which the map is given up, or None.
        callback: what to tell, or None.
        total: number of samples, or None.
        samples: that have been added.
    """

    timeout: float | None
    callback: Callable[[MapProgress], None] | None
    total: int | None
    samples: int = 0

    def __post_init__(self) -> None:
        self._started = time.monotonic()
        self._told = False

    def tick(self) -> None:
        """Look at the deadline, which must not have passed."""
        seconds = time.monotonic() - self._started
        if self.timeout is not None and seconds > self.timeout:
            raise MapTimeoutError(
                f"expected a map within {self.timeout:g} s, got {self.samples} samples in that "
                "time; use fewer samples, rows='auto' or a number of probes, or rule='true_label'",
                self.samples,
                seconds,
            )

    def add(self, samples: int, passes: int, exact: bool, chunk: int) -> None:
        """Count samples, and tell of them."""
        self.samples += samples
        seconds = time.monotonic() - self._started
        now = MapProgress(self.samples, self.total, passes, exact, chunk, seconds)
        left = now.seconds_left
        if not self._told and left is not None:
            self._told = True
            if left > LONG:
                LOGGER.warning(
                    "the map of %d samples will take about %.0f s more (%d backward passes per "
                    "sample); fewer samples, a number of probes (rows=4) or rule='true_label' take "
                    "less",
                    self.total,
                    left,
                    passes,
                )
        if self.callback is not None:
            self.callback(now)


def total_samples(batches: Iterable[Any]) -> int | None:
    """How many samples some batches have, if that is known without going through them."""
    data = getattr(batches, "dataset", None)
    if isinstance(data, Sized) and isinstance(batches, Sized):
        drops = getattr(batches, "drop_last", False)
        size = getattr(batches, "batch_size", None)
        return len(batches) * size if drops and size else len(data)
    if isinstance(batches, (list, tuple)):
        return sum(split_batch(batch)[1].shape[:1].numel() for batch in batches)
    return None


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


class HalfSplitter:
    """Deals samples out to two halves, of sizes that differ by at most one.

    At random and not in turn: where classes alternate in the data (the digits of scikit-learn
    begin 0, 1, 2, ...), even and odd samples are not alike.

    Args:
        seed: of the deal.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._lead = 0  # samples of the first half minus samples of the second

    def split_in_halves(self, x: Inputs, y: Tensor) -> tuple[Batch, Batch]:
        """Split a batch."""
        order = torch.randperm(len(y), generator=self._generator)
        coin = int(torch.randint(2, (), generator=self._generator))
        size = max(0, len(y) - self._lead + coin) // 2
        first, second = (half.sort().values.to(y.device) for half in (order[:size], order[size:]))
        self._lead += len(first) - len(second)
        return _chosen(x, y, first), _chosen(x, y, second)


def _chosen(x: Inputs, y: Tensor, index: Tensor) -> Batch:
    return map_tensors(x, lambda tensor: tensor[index]), y[index]
