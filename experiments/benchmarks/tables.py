"""The figures of the compared methods as tables."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from experiments.benchmarks.rows import MapRow, MethodsReport, ThresholdRow
from fedsens._tables import make_table


def methods_table(report: MethodsReport) -> Table:
    """Lay out what each method costs on one case.

    Args:
        report: what :func:`experiments.benchmarks.maps.compare_methods` measured.

    Returns:
        The table, a line for each method.
    """
    return make_table(
        (
            "CPU time per sample, one thread",
            "",
            "ms",
            "training steps",
            "times ours",
            "peak MiB",
            "chunk",
        ),
        map(_method, report.rows),
        title=f"{report.title}: {report.parameters:,} parameters",
        caption="= computes the same number, checked; * extrapolated from a few elements"
        + "".join(f"; {method} is absent: {why}" for method, why in report.absent.items()),
        wrapping=(0,),
    )


def thresholds_table(report: MethodsReport) -> Table:
    """Lay out which thresholds are reached on one case.

    Args:
        report: what :func:`experiments.benchmarks.maps.compare_methods` measured.

    Returns:
        The table, a line for each threshold.
    """
    rows = map(_threshold, report.thresholds)
    return make_table(("limit", "needed", "measured", ""), rows, left=(0, 3), wrapping=(0, 3))


def _method(row: MapRow) -> tuple[str, ...]:
    return (
        row.method + ("*" if row.extrapolated else ""),
        "" if row.same_as is None else "=",
        _number(row.ms_per_sample),
        _number(row.steps),
        "" if row.ratio is None else _number(row.ratio),
        "" if row.peak_mb is None else f"{row.peak_mb:,.0f}",
        "" if row.chunk is None else str(row.chunk),
    )


def _threshold(row: ThresholdRow) -> tuple[str | Text, ...]:
    sign = ">=" if row.at_least else "<="
    measured = "" if row.measured is None else _number(row.measured)
    return row.name, f"{sign} {row.limit:g}", measured, _verdict(row)


def _verdict(row: ThresholdRow) -> Text:
    if row.reached is None:
        return Text("not measured", style="dim")
    if row.reached:
        return Text("reached", style="green")
    return Text("not reached", style="red")


def _number(value: float) -> str:
    """Three digits, or all of a large number's."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
