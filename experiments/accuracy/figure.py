"""accuracy.png: accuracy per round, by skew and ratio."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments.cases import Row

STYLES = ((0.0, "#9d9da1", "-", 5.0), (0.1, "#4c78a8", "-", 2.0), (1.0, "#e45756", "--", 1.5))


def draw(rows: Sequence[Row], alphas: Sequence[float], path: Path) -> None:
    """Draw a panel for each skew; the lines are of different width, because they coincide.

    Args:
        rows: of :mod:`experiments.accuracy`.
        alphas: of the Dirichlet distribution.
        path: the PNG file.
    """
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    for axes, alpha in zip(figure.subplots(1, len(alphas), sharey=True), alphas, strict=True):
        for ratio, color, style, width in STYLES:
            curve = [r for r in rows if (r["alpha"], r["ratio"]) == (alpha, ratio)]
            label = "ratio 0: plain FedAvg" if ratio == 0 else f"ratio {ratio:g}"
            axes.plot(
                [row["round"] for row in curve],
                [row["accuracy"] for row in curve],
                style,
                color=color,
                linewidth=width,
                label=label,
            )
        axes.set(title=f"Dirichlet {alpha:g}", xlabel="round")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("federated accuracy")
    figure.axes[0].legend(frameon=False)
    figure.savefig(path, dpi=120)
