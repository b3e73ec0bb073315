"""What the map has to reach, as ratios of costs measured in one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from experiments.benchmarks.rows import LITERAL, PROBE, TRUE_LABEL, VECTOR, MapRow, ThresholdRow

Rows = Mapping[str, MapRow]
CNN, TRANSFORMER = "cnn", "transformer"


@dataclass(frozen=True)
class Threshold:
    """A limit on a ratio.

    Attributes:
        name: the ratio in words.
        measure: the rows by method to the ratio, None where a row is absent.
        limits: the limit by kind of model; a kind without one is not judged.
        at_least: whether it is a lower limit.
    """

    name: str
    measure: Callable[[Rows], float | None]
    limits: Mapping[str, float]
    at_least: bool = True


def judge(rows: Sequence[MapRow], kind: str) -> list[ThresholdRow]:
    """Hold the rows of a case against the limits.

    Args:
        rows: the case's rows.
        kind: ``"cnn"`` or ``"transformer"``.

    Returns:
        One row per limit on this kind of model.
    """
    by_method = {row.method: row for row in rows}
    return [
        _judged(threshold, threshold.limits[kind], threshold.measure(by_method))
        for threshold in THRESHOLDS
        if kind in threshold.limits
    ]


def _judged(threshold: Threshold, limit: float, measured: float | None) -> ThresholdRow:
    if measured is None:
        return ThresholdRow(threshold.name, limit, threshold.at_least, None, None)
    reached = measured >= limit if threshold.at_least else measured <= limit
    return ThresholdRow(threshold.name, limit, threshold.at_least, measured, reached)


def _cost(anchor: str, own: str) -> Callable[[Rows], float | None]:
    def measure(rows: Rows) -> float | None:
        if anchor not in rows or own not in rows:
            return None
        return rows[anchor].ms_per_sample / rows[own].ms_per_sample

    return measure


def _fastest_same(rows: Rows) -> float | None:
    same = [r.ms_per_sample for r in rows.values() if r.same_as == VECTOR and not r.extrapolated]
    return min(same) / rows[VECTOR].ms_per_sample if same and VECTOR in rows else None


def _steps(own: str) -> Callable[[Rows], float | None]:
    return lambda rows: rows[own].steps if own in rows else None


THRESHOLDS = (
    Threshold(
        "BackPACK BatchDiagGGNExact / vector, exact",
        _cost("BackPACK BatchDiagGGNExact", VECTOR),
        {CNN: 1.5},
    ),
    Threshold(
        "BackPACK DiagGGNExact / vector, exact",
        _cost("BackPACK DiagGGNExact", VECTOR),
        {CNN: 1.2},
    ),
    Threshold("fastest same number / vector, exact", _fastest_same, {CNN: 3.5}),
    Threshold("literal double backward / vector, exact", _cost(LITERAL, VECTOR), {CNN: 1e4}),
    Threshold(
        "torch.func vmap(grad) / true_label",
        _cost("torch.func vmap(grad)", TRUE_LABEL),
        {CNN: 1.0, TRANSFORMER: 1.0},
    ),
    Threshold(
        "torch.func vmap(grad) / vector, 1 probe",
        _cost("torch.func vmap(grad)", PROBE),
        {CNN: 1.0, TRANSFORMER: 1.0},
    ),
    Threshold("true_label, training steps", _steps(TRUE_LABEL), {CNN: 3, TRANSFORMER: 2}, False),
    Threshold("vector, 1 probe, training steps", _steps(PROBE), {CNN: 3, TRANSFORMER: 2}, False),
)
