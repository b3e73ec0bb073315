"""The figures of the scale benchmark as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich import box
from rich.table import Table

from fedsens.bench.scale import ScaleRow

Plans = Callable[[ScaleRow], tuple[int, int]]
TITLES = {"parameters": "fedsens", "clients": "fedsens", "clients, plain": "FedAvg"}


def scale_table(sweeps: Mapping[str, Sequence[ScaleRow]], plans: Plans) -> Table:
    """A line for each federation.

    Args:
        sweeps: what :func:`fedsens.bench.scale.bench_scale` measured.
        plans: gives the bytes that :mod:`fedsens.planning` predicts for server and client.

    Returns:
        The table.
    """
    table = Table(
        title="A round as models and federations grow, beside Flower's FedAvg",
        caption="us: CPU time for each parameter and client, without training. MiB: most memory of "
        "the process, with all libraries; the clients take turns in one. plan: what fedsens plan "
        "predicts, relative to that.",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("", no_wrap=True)
    for name in ("P", "clients", "us: server", "client", "MiB: server", "client", "plan", "plan"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, rows in sweeps.items():
        for index, row in enumerate(rows):
            planned = (None, None) if row.ratio is None else plans(row)
            table.add_row(
                "" if index else TITLES[name],
                f"{row.parameters:.3g}",
                str(row.clients),
                f"{1e6 * row.server_seconds / row.parameters / row.clients:.3f}",
                f"{1e6 * row.client_seconds / row.parameters:.3f}",
                _mebibytes(row.server_peak),
                _mebibytes(row.client_peak),
                _relative(planned[0], row.server_peak),
                _relative(planned[1], row.client_peak),
            )
        table.add_section()
    return table


def _relative(planned: int | None, measured: int | None) -> str:
    return "" if planned is None or measured is None else f"{planned / measured:.2f}"


def _mebibytes(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:,.0f}"
