"""remainder.png: accuracy per round, by what becomes of the remainder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.cases import Row

COLORS = (
    "#9d9da1",
    "#4c78a8",
    "#54a24b",
    "#b279a2",
    "#9d755d",
    "#bab0ac",
    "#f58518",
    "#e45756",
    "#72b7b2",
)


def draw(rows: Sequence[Row], ways: Sequence[str], path: Path) -> None:
    """Draw the mean over the seeds of each way, and the range of them as a band.

    Args:
        rows: of :mod:`experiments.remainder`.
        ways: their names in order.
        path: the PNG file.
    """
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    for way, color in zip(ways, COLORS, strict=False):
        seeds = sorted({row["seed"] for row in rows})
        curves = np.array([_curve(rows, way, seed) for seed in seeds])
        rounds = np.arange(1, curves.shape[1] + 1)
        wide = way == "plain"
        axes.plot(rounds, curves.mean(0), color=color, label=way, linewidth=4 if wide else 1.6)
        axes.fill_between(rounds, curves.min(0), curves.max(0), color=color, alpha=0.15)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="round", ylabel="federated accuracy", title="10 % encrypted, but for ratio 1")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _curve(rows: Sequence[Row], way: str, seed: int) -> list[float]:
    return [row["accuracy"] for row in rows if (row["way"], row["seed"]) == (way, seed)]
