"""What a sensitivity map costs, beside the same and similar numbers computed in other ways."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import metadata
from textwrap import shorten
from typing import Any

import torch

from fedsens.bench import map_libraries as libraries
from fedsens.bench import map_torch as plain
from fedsens.bench.map_cases import Case
from fedsens.bench.map_contest import Contender, Terms, check_same, play
from fedsens.bench.map_gates import judge
from fedsens.bench.map_measure import measuring
from fedsens.bench.map_methods import Method, ours, training_step
from fedsens.bench.map_rows import LITERAL, PROBE, STEP, TRUE_LABEL, VECTOR, CaseReport, MapRow
from fedsens.sensitivity import SensitivityMap, sensitivity_map

BATCH = 32  # of a training step

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


def bench_case(case: Case, samples: int | None = None, repeats: int = 3) -> CaseReport:
    """Measure every method on one case, in this process alone and on one thread.

    Time is process CPU time, the median over interleaved rounds after a warm-up in which each
    method tries its chunks. A slow method gets fewer samples and rounds. Methods that compute
    the same number as :func:`sensitivity_map` are checked against it first. The literal double
    backward runs for a few elements of one sample's gradient and is extrapolated to all of them.

    Args:
        case: the case.
        samples: how many samples the fast methods are measured on, instead of the case's number.
        repeats: number of rounds.

    Returns:
        The rows, what is absent and why, and the limits that are reached.

    Raises:
        BenchmarkError: a method that should compute the same number computes another.
    """  # noqa: DOC502 - raised by check_same
    with measuring():
        arena = _Arena(case, samples or case.samples, Terms(repeats, case.limit))
        contenders = arena.contenders()
        play(contenders, arena.x, arena.y, arena.terms)
        literal = arena.literal()
    rows = _rows(contenders, literal, arena.maps)
    size = sum(parameter.numel() for parameter in arena.model.parameters())
    gates = judge(rows, case.kind)
    return CaseReport(case.name, case.title, size, case.classes, rows, arena.absent, gates)


def environment() -> dict[str, Any]:
    """What the figures depend on.

    Returns:
        Versions and machine.
    """
    found = {}
    for package in ("torch", "backpack-for-pytorch", "opacus"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found | {"machine": platform.machine(), "threads": 1, "time": "process CPU time"}


class _Arena:
    """A case's model and data, and the methods that can serve it."""

    def __init__(self, case: Case, samples: int, terms: Terms) -> None:
        self.case, self.samples, self.terms = case, samples, terms
        self.model, self.x, self.y = case.make(max(samples, BATCH))
        self.few = min(case.checked, samples)
        few = [(self.x[: self.few], self.y[: self.few])]
        self.maps = {name: sensitivity_map(self.model, few, **o) for name, o in OURS.items()}
        self.absent: dict[str, str] = {}

    def contenders(self) -> list[Contender]:
        """Every method that can serve the model, checked and with its best chunk."""
        ready = []
        for method in METHODS:
            try:
                ready.append(self._ready(method))
            except (ImportError, NotImplementedError) as error:
                self.absent[method.name] = _reason(error)
        return ready

    def _ready(self, method: Method) -> Contender:
        contender = Contender(method, method.build(self.model, self.case.classes))
        chunks = self.case.chunks.get(method.chunk, (BATCH,))
        sums = contender.meet(self.x[: self.few], self.y[: self.few], chunks[0])
        if method.same and method.versus is not None:
            check_same(method.name, sums, self.maps[method.versus].sums)
        most = max(self.samples, BATCH) if method.chunk == "batch" else self.samples
        contender.tune(self.x[:most], self.y[:most], chunks, self.terms)
        return contender

    def literal(self) -> float:
        """CPU seconds per sample of the literal double backward, checked like the others."""
        x, y = self.x[:1], self.y[:1]
        seconds, places, norms = plain.literal(
            self.model, x, y, self.case.classes, self.case.literal_elements
        )
        sums = sensitivity_map(self.model, [(x, y)], **OURS[VECTOR]).sums.values()
        expected = torch.cat([value.reshape(-1) for value in sums])[places]
        check_same(LITERAL, {"the timed elements": norms}, {"the timed elements": expected})
        return seconds


def _reason(error: ImportError | NotImplementedError) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed: pip install 'fedsens[bench]'"
    first = error.args[0] if error.args else error
    # Opacus gives a list of errors
    return shorten(str(first[0] if isinstance(first, list) else first), 160, placeholder=" ...")


def _rows(
    contenders: Sequence[Contender], literal: float, maps: Mapping[str, SensitivityMap]
) -> list[MapRow]:
    seconds = {contender.method.name: contender.seconds for contender in contenders}

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
            contender.method,
            contender.seconds,
            contender.samples,
            len(contender.per_sample),
            chunk=None if contender.method.chunk == "own" else contender.chunk,
            peak_mb=None if contender.peak is None else contender.peak / 2**20,
        )
        for contender in contenders
    ]
    return [
        *measured,
        row(ELEMENTWISE, literal, 1, 1, chunk=None, peak_mb=None, extrapolated=True),
    ]


def _engines(result: SensitivityMap | None) -> dict[str, int] | None:
    """How many parameters each engine has served."""
    if result is None:
        return None
    return dict(Counter(result.meta["engines"].values()))
