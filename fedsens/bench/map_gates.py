"""What the map has to reach, as ratios of costs measured in one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fedsens.bench.map_rows import LITERAL, PROBE, TRUE_LABEL, VECTOR, GateRow, MapRow

Rows = Mapping[str, MapRow]
CNN, TRANSFORMER = "cnn", "transformer"


@dataclass(frozen=True)
class Gate:
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


def judge(rows: Sequence[MapRow], kind: str) -> list[GateRow]:
    """Hold the rows of a case against the limits.

    Args:
        rows: the case's rows.
        kind: ``"cnn"`` or ``"transformer"``.

    Returns:
        One row per limit on this kind of model.
    """
    by_method = {row.method: row for row in rows}
    return [
        _judged(gate, gate.limits[kind], gate.measure(by_method))
        for gate in GATES
        if kind in gate.limits
    ]


def _judged(gate: Gate, limit: float, measured: float | None) -> GateRow:
    if measured is None:
        return GateRow(gate.name, limit, gate.at_least, None, None)
    reached = measured >= limit if gate.at_least else measured <= limit
    return GateRow(gate.name, limit, gate.at_least, measured, reached)


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


GATES = (
    Gate(
        "BackPACK BatchDiagGGNExact / vector, exact",
        _cost("BackPACK BatchDiagGGNExact", VECTOR),
        {CNN: 1.5},
    ),
    Gate(
        "BackPACK DiagGGNExact / vector, exact",
        _cost("BackPACK DiagGGNExact", VECTOR),
        {CNN: 1.2},
    ),
    Gate("fastest same number / vector, exact", _fastest_same, {CNN: 3.5}),
    Gate("literal double backward / vector, exact", _cost(LITERAL, VECTOR), {CNN: 1e4}),
    Gate(
        "torch.func vmap(grad) / true_label",
        _cost("torch.func vmap(grad)", TRUE_LABEL),
        {CNN: 1.0, TRANSFORMER: 1.0},
    ),
    Gate(
        "torch.func vmap(grad) / vector, 1 probe",
        _cost("torch.func vmap(grad)", PROBE),
        {CNN: 1.0, TRANSFORMER: 1.0},
    ),
    Gate("true_label, training steps", _steps(TRUE_LABEL), {CNN: 3, TRANSFORMER: 2}, False),
    Gate("vector, 1 probe, training steps", _steps(PROBE), {CNN: 3, TRANSFORMER: 2}, False),
)
