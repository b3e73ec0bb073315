"""ratios.png: bytes and CPU time of a round by ratio."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments.cases import Row


def draw(rows: Sequence[Row], model: str, path: Path) -> None:
    """Draw the figure.

    Args:
        rows: relative to plain FedAvg, by ratio.
        model: its name.
        path: the PNG file.
    """
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    ratios = [row["ratio"] for row in rows]
    left.plot(ratios, [row["up"] for row in rows], "o-", color="#4c78a8", label="up")
    left.plot(ratios, [row["down"] for row in rows], "s-", color="#e45756", label="down")
    left.set(title="Bytes of a client", ylabel="relative to plain Flower FedAvg", ylim=(0, 1.2))
    times = [row["time with training"] for row in rows]
    right.plot(ratios, times, "o-", color="#4c78a8", label="with one local epoch")
    times = [row["time"] for row in rows]
    right.plot(ratios, times, "s-", color="#e45756", label="without training")
    right.set(title="CPU time of server and clients", yscale="log")
    ticks = [tick for tick in (1, 2, 5, 10, 20, 50) if tick <= 2 * max(times)]
    right.set_yticks(ticks, map(str, ticks))
    right.minorticks_off()
    for axes in (left, right):
        axes.axhline(1, color="#4c4c4c", linewidth=0.8)
        axes.set_xlabel("share of the parameters that is encrypted")
        axes.grid(alpha=0.3, which="both")
        axes.legend(frameon=False)
    figure.suptitle(f"A round of {model} with 4 clients")
    figure.savefig(path, dpi=120)
