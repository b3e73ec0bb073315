"""DATA.png: SSIM, UQI and VIF against the ratio, the naive attacker above the aware one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.cases import Row
from fedsens.audit import interval

ATTACKERS = {
    "dlg-naive": "naive: encrypted taken for 0",
    "dlg-tv": "aware: encrypted left out, TV prior",
}
MEASURES = {"ssim": "mean SSIM", "uqi": "UQI", "vif": "VIF"}
COLORS = {
    "random": "#9d9da1",
    "sensitivity": "#e45756",
    "gradient": "#f58518",
    "first_layers": "#4c78a8",
    "critical_layers": "#54a24b",
}
PAPER = {0.1: "sensitivity", 0.425: "random"}  # what FedML-HE finds to suffice


def draw(rows: Sequence[Row], data: str, path: Path) -> None:
    """Draw the figure.

    Args:
        rows: of :mod:`experiments.privacy`.
        data: name of the data set.
        path: the PNG file.
    """
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    grid = figure.subplots(2, 3, sharex=True, sharey="col")
    for line, (attack, attacker) in zip(grid, ATTACKERS.items(), strict=True):
        for axes, (measure, label) in zip(line, MEASURES.items(), strict=True):
            _draw_one(axes, rows, attack, measure)
            axes.set_title(f"{label}\n{attacker}", fontsize=9)
        line[0].legend(fontsize=7, frameon=False)
    for axes in grid[1]:
        axes.set_xlabel("share of the parameters that is encrypted")
    count = len({row["image"] for row in rows})
    figure.suptitle(f"LeNet of DLG, untrained, {data}: single-image gradients, {count} tried")
    figure.savefig(path, dpi=110)


def mean_of(rows: Sequence[Row], attack: str, policy: str, ratio: float, measure: str) -> float:
    """Mean over images of a measure of one attack under one mask.

    Args:
        rows: of the experiment.
        attack: its name.
        policy: of the mask.
        ratio: share that is encrypted.
        measure: a column.

    Returns:
        The mean.
    """
    return float(np.mean(_values(rows, attack, policy, ratio, measure)))


def _draw_one(axes: Axes, rows: Sequence[Row], attack: str, measure: str) -> None:
    for policy, color in COLORS.items():
        own = [row for row in rows if (row["attack"], row["policy"]) == (attack, policy)]
        ratios = sorted({float(row["ratio"]) for row in own})
        if not ratios:
            continue
        masks = [("none", 0.0), *((policy, ratio) for ratio in ratios), ("all", 1.0)]
        spread = [interval(_values(rows, attack, *mask, measure)) for mask in masks]
        at = [ratio for _, ratio in masks]
        axes.plot(at, [each.mean for each in spread], "o-", color=color, label=policy, markersize=3)
        low, high = [each.low for each in spread], [each.high for each in spread]
        axes.fill_between(at, low, high, color=color, alpha=0.12, linewidth=0)
    guess = interval(_values(rows, "guess", "none", 0.0, measure))
    axes.axhspan(guess.low, guess.high, color="black", alpha=0.12, linewidth=0)
    axes.axhline(guess.mean, color="black", linestyle="--", linewidth=0.8, label="guess")
    for ratio, policy in PAPER.items():
        axes.axvline(ratio, color=COLORS[policy], linestyle=":", linewidth=1)
    axes.grid(alpha=0.3)
    axes.set_ylim(-0.05, 1.05)


def _values(
    rows: Sequence[Row], attack: str, policy: str, ratio: float, measure: str
) -> list[float]:
    wanted = (attack, policy, ratio)
    chosen = [row for row in rows if (row["attack"], row["policy"], row["ratio"]) == wanted]
    return [float(row[measure]) for row in chosen]
