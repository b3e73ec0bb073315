"""clients.png: the server's time and memory by number of clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments.cases import Row

COLORS = ("#9d9da1", "#4c78a8", "#e45756")
MIB = 2**20


def draw(rows: Sequence[Row], names: Mapping[str | float, str], path: Path) -> None:
    """Draw the figure; memory only where the system tells it.

    Args:
        rows: of :mod:`experiments.clients`.
        names: ratio to its name.
        path: the PNG file.
    """
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (ratio, name), color in zip(names.items(), COLORS, strict=True):
        own = [row for row in rows if row["ratio"] == ratio]
        clients = [row["clients"] for row in own]
        left.plot(clients, [row["server seconds"] for row in own], "o-", color=color, label=name)
        if all(row["server bytes"] for row in own):
            sizes = [row["server bytes"] / MIB for row in own]
            right.plot(clients, sizes, "o-", color=color, label=name)
    left.set(title="CPU time of the server", ylabel="seconds")
    right.set(title="Memory of the server's process at most", ylabel="MiB", ylim=(0, None))
    for axes in (left, right):
        axes.set_xlabel("clients")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
