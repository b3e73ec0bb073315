"""The round benchmark's figures as a table."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.table import Table

from fedsens.bench.round_rows import RoundReport


def round_table(report: RoundReport, planned: Mapping[str, tuple[float, float]]) -> Table:
    """One line per ratio.

    Args:
        report: what :func:`fedsens.bench.round.bench_round` measured.
        planned: name of a row to the bytes of a client, both ways, and the CPU seconds that
            :mod:`fedsens.planning` predicts.

    Returns:
        The table.
    """
    table = Table(
        title=f"A round of {report.model}: {report.parameters:,} parameters, {report.clients} "
        f"clients, an epoch of {report.images} images each ({report.training_seconds:.2g} s)",
        caption="MB: a client, both ways. CPU s: server and clients without training; CPU x: with "
        "it. plan: what fedsens plan predicts, relative to what was measured.",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("", no_wrap=True)
    for name in ("MB", "up x", "down x", "both x", "CPU s", "CPU x", "plan: MB", "CPU"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report.rows:
        relative, both = report.ratios(row), row.bytes_up + row.bytes_down
        plan = planned.get(row.name)
        table.add_row(
            row.name,
            f"{both / 1e6:.2f}",
            *(f"{relative[name]:.2f}" for name in ("up", "down", "both")),
            f"{row.seconds:.3f}",
            f"{relative['time']:.2f}",
            "" if plan is None else f"{plan[0] / both:.2f}",
            "" if plan is None else f"{plan[1] / row.seconds:.2f}",
        )
    return table
