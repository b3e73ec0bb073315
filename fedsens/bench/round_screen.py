"""The round benchmark's figures as a table."""

from __future__ import annotations

from rich import box
from rich.table import Table

from fedsens.bench.round_rows import RoundReport


def round_table(report: RoundReport) -> Table:
    """One line per ratio.

    Args:
        report: what :func:`fedsens.bench.round.bench_round` measured.

    Returns:
        The table.
    """
    table = Table(
        title=f"A round of {report.model}: {report.parameters:,} parameters, {report.clients} "
        f"clients, an epoch of {report.images} images each ({report.training_seconds:.2g} s)",
        caption="CPU seconds are of server and clients without training; CPU x includes it.",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("")
    for name in ("MB up", "MB down", "up x", "down x", "bytes x", "CPU s", "CPU x"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report.rows:
        relative = report.ratios(row)
        table.add_row(
            row.name,
            f"{row.bytes_up / 1e6:.2f}",
            f"{row.bytes_down / 1e6:.2f}",
            *(f"{relative[name]:.2f}" for name in ("up", "down", "both")),
            f"{row.seconds:.3f}",
            f"{relative['time']:.2f}",
        )
    return table
