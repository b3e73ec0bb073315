"""curves.png: quality, bytes and seconds of a simulation beside the same run at ratio 0."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedsens.simulation._summary import RunSummary, SimulationSummary

PLAIN_COLOR, ENCRYPTED_COLOR, BASELINE_COLOR = "#4c78a8", "#e45756", "#9d9da1"


def draw_curves(summary: SimulationSummary, path: Path) -> None:
    """Draw the figure.

    Args:
        summary: the simulation.
        path: the PNG file.
    """
    figure = Figure(figsize=(13, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    runs: list[tuple[str, RunSummary]] = [(f"ratio {summary.ratio:.3g}", summary)]
    if summary.baseline is not None:
        runs.insert(0, ("ratio 0", summary.baseline))
    _scores(left, runs)
    _bytes(middle, runs)
    _seconds(right, runs)
    figure.suptitle(
        f"{summary.encrypted_parameters:,} of {summary.parameters:,} parameters encrypted, "
        f"{summary.per_round[-1].clients} clients"
    )
    figure.savefig(path, dpi=120)


def _scores(axes: Axes, runs: list[tuple[str, RunSummary]]) -> None:
    styles = (
        (("o-", ENCRYPTED_COLOR, 5.0),)
        if len(runs) == 1
        else (
            ("s-", BASELINE_COLOR, 8.0),
            ("o--", ENCRYPTED_COLOR, 5.0),
        )
    )
    for (label, run), (style, color, size) in zip(runs, styles, strict=True):
        points = [(row.round, row.score) for row in run.per_round if row.score is not None]
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            style,
            color=color,
            markersize=size,
            label=label,
        )
    metric = runs[-1][1].metric
    if metric is None:
        axes.set(title="The app reports no metric")
        axes.axis("off")
        return
    axes.set(xlabel="round", ylabel=metric, title=f"Federated {metric}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(loc="best")


def _bytes(axes: Axes, runs: list[tuple[str, RunSummary]]) -> None:
    labels, plain, encrypted = [], [], []
    for direction in ("up", "down"):
        for label, run in runs:
            rows = [getattr(row, f"bytes_{direction}") for row in run.per_round]
            labels.append(f"{direction}\n{label}")
            plain.append(sum(row.plain for row in rows) / len(rows) / 1e6)
            encrypted.append(sum(row.encrypted for row in rows) / len(rows) / 1e6)
    axes.bar(labels, plain, color=PLAIN_COLOR, label="plaintext")
    axes.bar(labels, encrypted, bottom=plain, color=ENCRYPTED_COLOR, label="ciphertext")
    axes.set(ylabel="MB per round, all clients", title="Traffic")
    axes.set_ylim(0, 1.25 * max(p + e for p, e in zip(plain, encrypted, strict=True)))
    axes.legend(loc="upper left", ncols=2)


def _seconds(axes: Axes, runs: list[tuple[str, RunSummary]]) -> None:
    phases = [p for p in ("keys", "map", "mask", "train", "evaluate") if p in runs[-1][1].seconds]
    height = 0.8 / len(runs)
    for index, (label, run) in enumerate(runs):
        positions = [y + (index - (len(runs) - 1) / 2) * height for y in range(len(phases))]
        color = ENCRYPTED_COLOR if index == len(runs) - 1 else BASELINE_COLOR
        values = [run.seconds.get(phase, 0.0) for phase in phases]
        bars = axes.barh(positions, values, height, color=color, label=label)
        axes.bar_label(bars, fmt="%.1f", padding=2)
    axes.set_yticks(range(len(phases)), phases)
    axes.invert_yaxis()
    axes.set(xlabel="wall seconds, whole run", title="Time by phase (the first includes start-up)")
    axes.margins(x=0.15)
    axes.legend(loc="lower right")
