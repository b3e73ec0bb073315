"""Runs one input and checks what it did: the error's name, the memory, the time."""

from __future__ import annotations

import resource
import tracemalloc
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from fedsens.errors import FedSensError

from .targets import Target

FIXED = 2**18  # bytes that any input may take: buffers of SEAL and zstd, one block of slots
HEADROOM = 2**29  # address space beyond that of the loaded libraries, for all code, C++ too
SECONDS = 10  # the longest that an input may take
TRACED = 64  # one input in so many is measured; all are within HEADROOM


class ExcessError(Exception):
    """An input took more memory than the target states."""


@dataclass
class Guard:
    """Counts what the inputs of a target did.

    Attributes:
        target: the parser.
        traced: one input in so many has its memory measured.
        outcomes: name of the error, or "accepted", to number of inputs.
        multiple: the most bytes of memory for each byte of input, beyond FIXED.
        peak: the most bytes of memory that one input took.
    """

    target: Target
    traced: int = TRACED
    outcomes: Counter[str] = field(default_factory=Counter)
    multiple: float = 0.0
    peak: int = 0

    @property
    def inputs(self) -> int:
        """How many inputs were tried."""
        return self.outcomes.total()

    def try_input(self, data: bytes) -> None:
        """Parse one input; whatever is not a FedSensError passes through.

        Raises:
            ExcessError: it took more memory than stated.
        """
        if self.inputs % self.traced:
            outcome = self.parse(data)
        else:
            outcome, peak = self._measure(data)
            if peak > self._limit(data):  # a table of the interpreter may have grown just now
                peak = min(peak, self._measure(data)[1])
            self._check(data, peak)
        self.outcomes[outcome] += 1

    def parse(self, data: bytes) -> str:
        """What the parser does with an input: the error's name, or "accepted"."""
        try:
            self.target.parse(data)
        except FedSensError as error:
            return type(error).__name__
        return "accepted"

    def _measure(self, data: bytes) -> tuple[str, int]:
        tracemalloc.start(1)
        try:
            return self.parse(data), tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    def _limit(self, data: bytes) -> int:
        return FIXED + self.target.multiple * len(data)

    def _check(self, data: bytes, peak: int) -> None:
        self.peak = max(self.peak, peak)
        self.multiple = max(self.multiple, (peak - FIXED) / max(len(data), 1))
        if peak > self._limit(data):
            raise ExcessError(f"{peak} bytes of memory for an input of {len(data)}")


def limit_memory() -> None:
    """Let this process take HEADROOM bytes of address space more, and no further."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + HEADROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def resident() -> int:
    """The most bytes of memory that this process has had."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
