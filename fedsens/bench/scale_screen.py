"""The figures of the scale benchmark as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table

from fedsens.bench.scale import ScaleRow

TITLES = {"parameters": "fedsens", "clients": "fedsens", "clients, plain": "FedAvg"}


def scale_table(sweeps: Mapping[str, Sequence[ScaleRow]]) -> Table:
    """A line for each federation.

    Args:
        sweeps: what :func:`fedsens.bench.scale.bench_scale` measured.

    Returns:
        The table.
    """
    table = Table(
        title="A round as models and federations grow, beside Flower's FedAvg",
        caption="us: CPU time for each parameter and client, without training. MiB: most memory of "
        "the process, with all libraries. The clients take turns in one process.",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("", no_wrap=True)
    for name in ("parameters", "clients", "server us", "client us", "server MiB", "client MiB"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, rows in sweeps.items():
        for index, row in enumerate(rows):
            table.add_row(
                "" if index else TITLES[name],
                f"{row.parameters:,}",
                str(row.clients),
                f"{1e6 * row.server_seconds / row.parameters / row.clients:.3f}",
                f"{1e6 * row.client_seconds / row.parameters:.3f}",
                _mebibytes(row.server_peak),
                _mebibytes(row.client_peak),
            )
        table.add_section()
    return table


def _mebibytes(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:,.0f}"
