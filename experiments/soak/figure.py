"""soak.png: memory and error over the rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments.cases import Row

COLORS = ("#4c78a8", "#e45756")


def draw(runs: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Draw the figure; memory only where the system tells it.

    Args:
        runs: name to rows.
        path: the PNG file.
    """
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots(2, len(runs), squeeze=False)
    for (name, rows), color, (memory, error) in zip(
        runs.items(), COLORS, zip(*axes, strict=True), strict=False
    ):
        rounds = [row["round"] for row in rows]
        sizes = [row["MiB"] for row in rows]
        if None not in sizes:
            memory.plot(rounds, sizes, color=color)
            memory.set_ylim(0, 1.2 * max(sizes))
        memory.set(title=name, ylabel="memory, MiB")
        error.plot(rounds, [row["of bound"] for row in rows], ".", ms=3, color=color)
        error.axhline(1, color="#9d9da1")
        error.set(xlabel="round", ylabel="largest error / its bound", ylim=(0, 1.1))
        for each in (memory, error):
            each.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
