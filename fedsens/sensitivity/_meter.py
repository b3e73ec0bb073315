"""How far a map is, what it will cost, and whether anybody still waits for it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass
from typing import Any

from fedsens.errors import MapTimeoutError
from fedsens.sensitivity._batching import split_batch

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
        """Look at the deadline.

        Raises:
            MapTimeoutError: it has passed.
        """
        seconds = time.monotonic() - self._started
        if self.timeout is not None and seconds > self.timeout:
            raise MapTimeoutError(
                f"expected a map within {self.timeout:g} s, got {self.samples} samples in "
                f"that time; "
                "use fewer samples, rows='auto' or a number of probes, or rule='true_label'",
                self.samples,
                seconds,
            )

    def add(self, samples: int, passes: int, exact: bool, chunk: int) -> None:
        """Count samples, and tell of them.

        Args:
            samples: how many were added.
            passes: backward passes that each of them took.
            exact: whether every row was used.
            chunk: samples side by side.
        """
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
    """How many samples some batches have, if that is known without going through them.

    Args:
        batches: a data loader, a list or tuple of batches, or any other iterable.

    Returns:
        The number, or None.
    """
    data = getattr(batches, "dataset", None)
    if isinstance(data, Sized) and isinstance(batches, Sized):
        drops = getattr(batches, "drop_last", False)
        size = getattr(batches, "batch_size", None)
        return len(batches) * size if drops and size else len(data)
    if isinstance(batches, (list, tuple)):
        return sum(len(split_batch(batch)[1]) for batch in batches)
    return None
