"""What a sensitivity map costs, beside the same and similar numbers computed in other ways."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import Any

import torch

from experiments.benchmarks import libraries
from experiments.benchmarks import plain_torch as plain
from experiments.benchmarks.comparisons import Comparison
from experiments.benchmarks.interleaved import (
    BenchmarkedMethod,
    Limits,
    check_same,
    run_interleaved,
)
from experiments.benchmarks.methods import Method, ours, training_step
from experiments.benchmarks.rows import (
    LITERAL,
    PROBE,
    STEP,
    TRUE_LABEL,
    VECTOR,
    MapRow,
    MethodsReport,
)
from experiments.benchmarks.thresholds import judge
from fedsens.bench._map import BATCH
from fedsens.bench._measure import measuring
from fedsens.sensitivity import SensitivityMap, sensitivity_map

OURS: dict[str, dict[str, Any]] = {
    TRUE_LABEL: {"rule": "true_label"},
    VECTOR: {"rule": "vector"},
    PROBE: {"rule": "vector", "rows": 1},
}
BATCH_FISHER, SUM_FISHER = "BackPACK BatchDiagGGNExact", "BackPACK DiagGGNExact"
METHODS = (
    *(Method(name, name, None, False, "own", ours(**o)) for name, o in OURS.items()),
    Method("torch.func vmap(grad)", "true_label", TRUE_LABEL, True, "one row", plain.func_grad),
    Method("torch.func vmap(jacrev)", "vector", VECTOR, True, "all rows", plain.func_jacobian),
    Method("torch.func vmap(grad) x C", "vector", VECTOR, True, "all rows", plain.func_rows),
    Method("batched double backward", "vector", VECTOR, True, "label rows", plain.batched_jacobian),
    Method("BackPACK BatchGrad x C", "vector", VECTOR, True, "all rows", libraries.backpack_rows),
    Method("Opacus x C", "vector", VECTOR, True, "all rows", libraries.opacus_rows),
    Method(BATCH_FISHER, "Fisher diagonal", VECTOR, False, "all rows", libraries.backpack_fisher),
    Method(SUM_FISHER, "its sum", VECTOR, False, "all rows", libraries.backpack_summed_fisher),
    Method(STEP, "gradients of a batch", None, False, "batch", training_step),
)


ELEMENTWISE = Method(LITERAL, "vector", VECTOR, True, "own", ours())


def compare_methods(
    comparison: Comparison, samples: int | None = None, repeats: int = 3
) -> MethodsReport:
    """Measure every method on one case, in this process alone and on one thread.

    Time is process CPU time, the median over interleaved rounds after a warm-up in which each
    method tries its chunks. A slow method gets fewer samples and rounds. Methods that compute
    the same number as :func:`sensitivity_map` are checked against it first. The literal double
    backward runs for a few elements of one sample's gradient and is extrapolated to all of them.

    Args:
        comparison: the case, and how much of it the slow methods get.
        samples: how many samples the fast methods are measured on, instead of the case's number.
        repeats: number of rounds.

    Returns:
        The rows, what is absent and why, and the thresholds that are reached.

    Raises:
        BenchmarkError: a method that should compute the same number computes another.
    """  # noqa: DOC502 - raised by check_same
    with measuring():
        limits = Limits(repeats, comparison.limit)
        runner = _Runner(comparison, samples or comparison.case.samples, limits)
        methods = runner.methods()
        run_interleaved(methods, runner.x, runner.y, limits)
        literal = runner.literal()
    rows = _rows(methods, literal, runner.maps)
    size = sum(parameter.numel() for parameter in runner.model.parameters())
    thresholds = judge(rows, comparison.kind)
    case = comparison.case
    return MethodsReport(case.name, case.title, size, case.classes, rows, runner.absent, thresholds)


class _Runner:
    """A case's model and data, and the methods that can serve it."""

    def __init__(self, comparison: Comparison, samples: int, limits: Limits) -> None:
        self.comparison, self.samples, self.limits = comparison, samples, limits
        self.classes = comparison.case.classes
        self.model, self.x, self.y = comparison.case.make(max(samples, BATCH))
        self.few = min(comparison.checked, samples)
        few = [(self.x[: self.few], self.y[: self.few])]
        self.maps = {name: sensitivity_map(self.model, few, **o) for name, o in OURS.items()}
        self.absent: dict[str, str] = {}

    def methods(self) -> list[BenchmarkedMethod]:
        """Every method that can serve the model, checked and with its best chunk."""
        ready = []
        for method in METHODS:
            try:
                ready.append(self._ready(method))
            except (ImportError, NotImplementedError) as error:
                self.absent[method.name] = _reason(error)
        return ready

    def _ready(self, method: Method) -> BenchmarkedMethod:
        benchmarked = BenchmarkedMethod(method, method.build(self.model, self.classes))
        chunks = self.comparison.chunks.get(method.chunk, (BATCH,))
        sums = benchmarked.warm_up(self.x[: self.few], self.y[: self.few], chunks[0])
        if method.same and method.versus is not None:
            check_same(method.name, sums, self.maps[method.versus].sums)
        most = max(self.samples, BATCH) if method.chunk == "batch" else self.samples
        benchmarked.tune(self.x[:most], self.y[:most], chunks, self.limits)
        return benchmarked

    def literal(self) -> float:
        """CPU seconds per sample of the literal double backward, checked like the others."""
        x, y = self.x[:1], self.y[:1]
        seconds, places, norms = plain.literal(
            self.model, x, y, self.classes, self.comparison.literal_elements
        )
        sums = sensitivity_map(self.model, [(x, y)], **OURS[VECTOR]).sums.values()
        expected = torch.cat([value.reshape(-1) for value in sums])[places]
        check_same(LITERAL, {"the timed elements": norms}, {"the timed elements": expected})
        return seconds


def _reason(error: ImportError | NotImplementedError) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed: pip install 'fedsens[experiments]'"
    first = error.args[0] if error.args else error
    # Opacus gives a list of errors
    return shorten(str(first[0] if isinstance(first, list) else first), 160, placeholder=" ...")


def _rows(
    methods: Sequence[BenchmarkedMethod], literal: float, maps: Mapping[str, SensitivityMap]
) -> list[MapRow]:
    seconds = {each.method.name: each.seconds for each in methods}

    def row(method: Method, cost: float, samples: int, rounds: int, **others: Any) -> MapRow:
        versus = method.versus
        return MapRow(
            method.name,
            method.quantity,
            versus if method.same else None,
            1e3 * cost,
            cost / seconds[STEP],
            versus,
            None if versus is None else cost / seconds[versus],
            samples,
            rounds,
            engines=_engines(maps.get(method.name)),
            **others,
        )

    measured = [
        row(
            each.method,
            each.seconds,
            each.samples,
            len(each.per_sample),
            chunk=None if each.method.chunk == "own" else each.chunk,
            peak_mb=None if each.peak is None else each.peak / 2**20,
        )
        for each in methods
    ]
    return [
        *measured,
        row(ELEMENTWISE, literal, 1, 1, chunk=None, peak_mb=None, extrapolated=True),
    ]


def _engines(result: SensitivityMap | None) -> dict[str, int] | None:
    return None if result is None else dict(Counter(result.meta["engines"].values()))
