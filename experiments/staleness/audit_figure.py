"""audit.png: what is recovered under an old mask and under a new one, by policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.cases import Row, rows_of
from experiments.staleness.union import NEW, NO_ENCRYPTION, OLD

STYLES = {OLD: ("s--", "#e45756"), NEW: ("o-", "#4c78a8")}


def draw(lines: Sequence[Row], guess: float, title: str, path: Path) -> None:
    """Draw the figure.

    Args:
        lines: of :func:`experiments.staleness.union.lines_of`.
        guess: SSIM without any update.
        title: of the figure.
        path: the PNG file.
    """
    policies = [p for p in dict.fromkeys(line["policy"] for line in lines) if p != NO_ENCRYPTION]
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    panels = figure.subplots(1, len(policies), sharey=True, squeeze=False)[0]
    for axes, policy in zip(panels, policies, strict=True):
        _draw_one(axes, lines, policy)
        axes.axhline(guess, color="black", linestyle="--", linewidth=0.8, label="guess")
        axes.set(xlabel="rounds of training", title=policy, ylim=(0, 1.05))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("SSIM, the best of all attacks")
    panels[0].legend(fontsize=8, frameon=False)
    void = sorted({line["round"] for line in lines if not line["works"]})
    note = f"; no attack works at round {', '.join(map(str, void))}" if void else ""
    figure.suptitle(title + note)
    figure.savefig(path, dpi=110)


def _draw_one(axes: Axes, lines: Sequence[Row], policy: str) -> None:
    rounds = list(dict.fromkeys(line["round"] for line in lines))
    anchors = [line["ssim"] for line in rows_of(lines, {"policy": NO_ENCRYPTION})]
    at = range(len(rounds))
    axes.plot(at, anchors, ".:", color="#9d9da1", label="nothing encrypted")
    for made, (style, color) in STYLES.items():
        # At round 0 the mask of the initialisation is the one of the round.
        own = [
            row
            for row in rows_of(lines, {"policy": policy})
            if row["made"] == made or row["round"] == 0
        ]
        where = [rounds.index(row["round"]) for row in own]
        values = [row["ssim"] for row in own]
        axes.plot(where, values, style, color=color, markersize=5, label=f"mask of {made}")
    axes.set_xticks(list(at), [str(number) for number in rounds])
