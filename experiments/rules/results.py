"""Rows of figures, their summary over seeds, and the files that hold them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from experiments.rules.run import Row


class Spread(NamedTuple):
    """A figure over seeds."""

    mean: float
    lowest: float
    highest: float


Summary = dict[int, dict[str, Spread]]


def summarise(rows: Sequence[Row]) -> Summary:
    """Mean and range over seeds.

    Args:
        rows: of all seeds, with the same figures.

    Returns:
        Epochs to name to spread.
    """
    summary: Summary = {}
    for epochs in sorted({row.epochs for row in rows}):
        same = [row.figures for row in rows if row.epochs == epochs]
        values = {name: [figures[name] for figures in same] for name in same[0]}
        summary[epochs] = {n: Spread(mean(v), min(v), max(v)) for n, v in values.items()}
    return summary


def write(rows: Sequence[Row], folder: Path) -> None:
    """Write rules.json (rows and summary) and rules.csv (one line per row).

    Args:
        rows: of all seeds.
        folder: an existing folder.
    """
    summary = {
        epochs: {name: spread._asdict() for name, spread in figures.items()}
        for epochs, figures in summarise(rows).items()
    }
    content = {"rows": [row._asdict() for row in rows], "summary": summary}
    (folder / "rules.json").write_text(json.dumps(content, indent=1) + "\n")
    with (folder / "rules.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["seed", "epochs", *rows[0].figures])
        for row in rows:
            values = [f"{value:.6g}" for value in row.figures.values()]
            writer.writerow([row.seed, row.epochs, *values])
