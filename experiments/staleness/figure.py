"""staleness.png: staleness of older masks per round, beside the accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments.cases import Row

COLORS = {"vector": "#4c78a8", "true_label": "#e45756"}
LINES = (("since first", "o-", "round 1"), ("since last", ".--", "the round before"))
GREY = "#9d9da1"


def draw(rows: Sequence[Row], ratio: float, path: Path) -> None:
    """Draw the figure.

    Args:
        rows: of :mod:`experiments.staleness`.
        ratio: share in the masks.
        path: the PNG file.
    """
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    for rule, color in COLORS.items():
        curve = [row for row in rows if row["rule"] == rule]
        rounds = [row["round"] for row in curve]
        for name, style, mask in LINES:
            values = [row[name] for row in curve]
            label = f"{rule}, mask of {mask}"
            axes.plot(rounds, values, style, color=color, markersize=4, label=label)
    any_rule = [row for row in rows if row["rule"] == "vector"]
    accuracy = [row["accuracy"] for row in any_rule]
    axes.plot([row["round"] for row in any_rule], accuracy, ":", color="#4c4c4c", label="accuracy")
    axes.axhline(1 - ratio / (2 - ratio), color=GREY, linewidth=0.8, label="random masks")
    axes.set(xlabel="round", ylabel="1 - intersection over union", ylim=(0, 1))
    axes.set_title(f"Staleness of a mask of {ratio:.0%}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)
