"""rules.png: overlap, mean sensitivity and staleness of the two rules over training."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.rules.results import Summary

VECTOR, TRUE_LABEL, BOTH, GREY = "#4c78a8", "#e45756", "#4c4c4c", "#9d9da1"
RULES = (("vector", VECTOR, "o-"), ("true_label", TRUE_LABEL, "s-"))
RANDOM = 0.1 / 1.9  # overlap of two random selections of a tenth


def draw(summary: Summary, path: Path) -> None:
    """Draw the figure: means over seeds, and their range as a band.

    Args:
        summary: of all seeds.
        path: the PNG file.
    """
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _overlaps(left, summary)
    _means(middle, summary)
    _staleness(right, summary)
    for axes in (left, middle, right):
        _finish(axes, summary)
    figure.savefig(path, dpi=120)


def _overlaps(axes: Axes, summary: Summary) -> None:
    _line(axes, summary, "rules, top 10%", BOTH, "D-", "the two rules")
    for rule, color, _ in RULES:
        label = f"{rule} and |mean gradient|"
        _line(axes, summary, f"{rule}, |mean gradient|", color, ".--", label)
    axes.axhline(RANDOM, color=GREY, linestyle=":", label="random selections")
    axes.set(title="Overlap of the top 10 %", ylabel="intersection over union", ylim=(0, 1))


def _means(axes: Axes, summary: Summary) -> None:
    for rule, color, style in RULES:
        _line(axes, summary, f"{rule}, mean S / init", color, style, rule)
    axes.set_yscale("log")
    axes.set(title="Mean sensitivity", ylabel="relative to the initial model")


def _staleness(axes: Axes, summary: Summary) -> None:
    for rule, color, style in RULES:
        _line(axes, summary, f"{rule}, stale since init", color, style, f"{rule}, map made at 0")
        name = f"{rule}, stale since last"
        _line(axes, summary, name, color, ".--", f"{rule}, map of the stage before")
    axes.axhline(1 - RANDOM, color=GREY, linestyle=":", label="random selections")
    axes.set(title="Staleness of an older map", ylabel="1 - overlap", ylim=(0, 1))


def _line(axes: Axes, summary: Summary, name: str, color: str, style: str, label: str) -> None:
    spreads = [figures[name] for figures in summary.values()]
    places = range(len(spreads))
    axes.plot(places, [s.mean for s in spreads], style, color=color, label=label, markersize=5)
    low, high = [s.lowest for s in spreads], [s.highest for s in spreads]
    axes.fill_between(places, low, high, color=color, alpha=0.15, linewidth=0)


def _finish(axes: Axes, summary: Summary) -> None:
    labels = [f"{epochs}\n{figures['accuracy'].mean:.0%}" for epochs, figures in summary.items()]
    axes.set_xticks(range(len(summary)), labels)
    axes.set_xlabel("epochs of training, and test accuracy")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.22))
