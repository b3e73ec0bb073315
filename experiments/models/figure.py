"""models.png: bytes and CPU time by model, beside the paper's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.cases import Row

OURS, TENTH, PAPER = "#4c78a8", "#72b7b2", "#e45756"
BYTES = (
    ("up at 0.1", TENTH, "fedsens, ratio 0.1, up"),
    ("up at 1", OURS, "fedsens, ratio 1, up"),
    ("down at 1", "#9ecae9", "fedsens, ratio 1, down"),
    ("paper's size at 1", PAPER, "FedML-HE, all encrypted"),
)
TIME = (
    ("time at 0.1", TENTH, "fedsens, ratio 0.1"),
    ("time at 1", OURS, "fedsens, ratio 1"),
    ("paper's time at 1", PAPER, "FedML-HE, all encrypted"),
)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the figure.

    Args:
        rows: of :mod:`experiments.models`.
        path: the PNG file.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _bars(left, rows, BYTES)
    left.set(title="Bytes of a client's message", ylabel="relative to plaintext")
    _bars(right, rows, TIME)
    right.set(title="CPU time of a round without training", ylabel="relative to plaintext")
    figure.savefig(path, dpi=120)


def _bars(axes: Axes, rows: Sequence[Row], series: Sequence[tuple[str, str, str]]) -> None:
    places, width = np.arange(len(rows)), 0.8 / len(series)
    for index, (name, color, label) in enumerate(series):
        heights = [row[name] for row in rows]
        axes.bar(places + (index + 0.5) * width - 0.4, heights, width, color=color, label=label)
    axes.axhline(1, color="#4c4c4c", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_xticks(places, [row["model"] for row in rows], rotation=20)
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize=8, frameon=False)
