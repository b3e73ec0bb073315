"""The map benchmark's figures as tables."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from fedsens.bench.map_rows import CaseReport, GateRow, MapRow


def case_tables(report: CaseReport) -> tuple[Table, Table]:
    """One case: the methods, then the limits.

    Args:
        report: what :func:`fedsens.bench.map.bench_case` measured.

    Returns:
        The two tables.
    """
    return _methods(report), _limits(report)


def _methods(report: CaseReport) -> Table:
    table = Table(
        title=f"{report.title}: {report.parameters:,} parameters",
        caption="= computes the same number, checked; * extrapolated from a few elements"
        + "".join(f"; {method} is absent: {why}" for method, why in report.absent.items()),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("CPU time per sample, one thread")
    for name in ("", "ms", "training steps", "times ours", "peak MiB", "chunk"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report.rows:
        table.add_row(
            row.method + ("*" if row.extrapolated else ""),
            "" if row.same_as is None else "=",
            _number(row.ms_per_sample),
            _number(row.steps),
            "" if row.ratio is None else _number(row.ratio),
            _memory(row),
            "" if row.chunk is None else str(row.chunk),
        )
    return table


def _limits(report: CaseReport) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("limit")
    for name in ("needed", "measured"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for gate in report.gates:
        sign = ">=" if gate.at_least else "<="
        measured = "" if gate.measured is None else _number(gate.measured)
        table.add_row(gate.gate, f"{sign} {gate.limit:g}", measured, _verdict(gate))
    return table


def _verdict(gate: GateRow) -> Text:
    if gate.reached is None:
        return Text("not measured", style="dim")
    if gate.reached:
        return Text("reached", style="green")
    return Text("not reached", style="red")


def _number(value: float) -> str:
    """Three digits, or all of a large number's."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _memory(row: MapRow) -> str:
    return "" if row.peak_mb is None else f"{row.peak_mb:,.0f}"
