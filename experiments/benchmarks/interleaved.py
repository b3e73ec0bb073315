"""Methods side by side: each with its best chunk, in interleaved rounds."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor

from experiments.benchmarks.methods import Method, Sums, Work
from fedsens.bench._measure import Run, timed, timed_with_peak
from fedsens.errors import BenchmarkError

Measure = Callable[[Callable[[], Sums]], Run[Sums]]

SHORT = 2.0  # CPU seconds
TOLERANCE = 1e-3  # a method that computes something else is off by more than 10 %


@dataclass(frozen=True)
class Limits:
    """How much is run.

    Attributes:
        repeats: number of rounds.
        limit: CPU seconds that a method may spend. It gets one round anyway, unless its first
            run has spent them all, which then counts as its round.
    """

    repeats: int
    limit: float

    def limit_of(self, method: Method) -> float:
        """CPU seconds for a method.

        What chooses its own chunk also checks itself on the first samples, and needs more of them
        to show what a sample costs.

        Args:
            method: the method.

        Returns:
            Seconds.
        """
        return 3 * self.limit if method.chunk == "own" else self.limit


@dataclass
class BenchmarkedMethod:
    """A method at work on a case.

    Attributes:
        method: the method.
        work: its work, bound to the model.
        chunk: the best chunk.
        samples: how many samples a round takes.
        peak: largest memory above what was held, in bytes; None where not measured.
        spent: CPU seconds in all.
        per_sample: CPU seconds per sample, one number per round.
    """

    method: Method
    work: Work
    chunk: int = 1
    samples: int = 1
    peak: int | None = None
    spent: float = 0.0
    per_sample: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Median CPU seconds per sample."""
        return median(self.per_sample)

    def warm_up(self, x: Tensor, y: Tensor, chunk: int) -> Sums:
        """Run for the first time, on few samples, to see what a sample costs.

        Args:
            x: inputs.
            y: labels.
            chunk: samples at a time.

        Returns:
            The sums.
        """
        run = self._run(x, y, chunk, timed_with_peak)
        self.chunk, self.samples, self.peak = chunk, len(x), run.peak
        cost = run.seconds
        if cost < SHORT:  # the first call of all also loads and compiles
            cost = self._run(x, y, chunk, timed).seconds
        self.per_sample = [cost / len(x)]
        return run.result

    def tune(self, x: Tensor, y: Tensor, chunks: Sequence[int], limits: Limits) -> None:
        """Choose the number of samples by the limits, and the chunk that costs least.

        Args:
            x: all inputs.
            y: all labels.
            chunks: what to try; a method that chooses itself gets all samples at once.
            limits: how much may be run.
        """
        limit = limits.limit_of(self.method)
        if self.spent >= limit:
            return
        met, runs = self.samples, limits.repeats + len(chunks)
        affordable = min(len(x), max(1, int(limit / runs / self.seconds)))
        self.per_sample = []
        if self.method.chunk == "own":
            chunks = (affordable,)
        if self.method.chunk == "label rows":
            self._try({chunk: min(affordable, met) for chunk in chunks}, x, y)
            self.samples = affordable
            return
        fitting = [chunk for chunk in chunks if chunk <= affordable] or [min(chunks[0], len(x))]
        self.chunk = fitting[0]
        if len(fitting) > 1 or fitting[0] > met:
            self._try({chunk: max(fitting) // chunk * chunk for chunk in fitting}, x, y)
        self.samples = max(affordable, self.chunk) // self.chunk * self.chunk

    def run_round(self, x: Tensor, y: Tensor) -> None:
        """Run one round.

        Args:
            x: all inputs.
            y: all labels.
        """
        size = self.samples
        run = self._run(x[:size], y[:size], self.chunk, timed)
        self.per_sample.append(run.seconds / size)

    def _try(self, sizes: Mapping[int, int], x: Tensor, y: Tensor) -> None:
        """Keep the best chunk; each is tried on its number of samples."""
        best = float("inf")
        for chunk, size in sizes.items():
            run = self._run(x[:size], y[:size], chunk, timed_with_peak)
            if run.seconds / size < best:
                best = run.seconds / size
                self.chunk, self.peak = chunk, run.peak

    def _run(self, x: Tensor, y: Tensor, chunk: int, measure: Measure) -> Run[Sums]:
        with warnings.catch_warnings():  # that libraries give at every call
            warnings.simplefilter("ignore", UserWarning)
            run = measure(lambda: self.work(x, y, chunk))
        self.spent += run.seconds
        return run


def run_interleaved(
    methods: Sequence[BenchmarkedMethod], x: Tensor, y: Tensor, limits: Limits
) -> None:
    """Time the methods in turn, so that drift hits all alike.

    Args:
        methods: what to time.
        x: all inputs.
        y: all labels.
        limits: how much may be run.
    """
    for _ in range(limits.repeats):
        for each in methods:
            if each.spent < limits.limit_of(each.method) or not each.per_sample:
                each.run_round(x, y)


def check_same(method: str, sums: Sums, expected: Mapping[str, Tensor]) -> None:
    """Check that two methods have computed the same map.

    Args:
        method: name of the one.
        sums: what it has computed.
        expected: what sensitivity_map has.

    Raises:
        BenchmarkError: they have other parameters, or one differs by more than 0.1 %.
    """
    if sums.keys() != expected.keys():
        names = ", ".join(sorted(sums.keys() ^ expected.keys())[:3])
        raise BenchmarkError(f"expected {method} to serve every parameter; it differs in {names}")
    # where all is rounding, as with the bias of attention keys, there is nothing to compare
    noise = 1e-5 * max(float(value.max()) for value in expected.values())
    for name, value in expected.items():
        error = float(torch.linalg.vector_norm(sums[name] - value))
        size = float(torch.linalg.vector_norm(value))
        if not error <= TOLERANCE * size + noise * value.numel() ** 0.5:
            raise BenchmarkError(
                f"expected {method} to compute the same number as sensitivity_map, got "
                f"{error / size:.1%} of difference in {name}; one of the two is wrong"
            )
