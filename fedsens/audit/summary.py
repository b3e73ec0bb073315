"""What a study found, as files: audit.json, audit.csv, labels.csv and presence.csv."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fedsens.audit.membership import LabelLeak, Presence
from fedsens.audit.metrics import Interval
from fedsens.audit.verdict import Line


@dataclass(frozen=True)
class Summary:
    """What a study found.

    Attributes:
        settings: of the study.
        parameters: P, of the model.
        kind: of the samples.
        mode: in which the model was attacked, in words.
        prior: case to the score of each victim's guess without any update.
        accuracy: case to that of the model that its updates are of.
        untried: trials that the time budget left over.
        lines: of the verdict.
        labels: how well they are inferred.
        presence: how well members are told; empty where that was not tried.
    """

    settings: Mapping[str, Any]
    parameters: int
    kind: str
    mode: str
    prior: Mapping[str, Sequence[float]]
    accuracy: Mapping[str, float]
    untried: int
    lines: Sequence[Line]
    labels: Sequence[LabelLeak]
    presence: Sequence[Presence]


def write_summary(summary: Summary, folder: Path) -> None:
    """Write the files.

    Args:
        summary: of the study.
        folder: an existing one.
    """
    (folder / "audit.json").write_text(json.dumps(asdict(summary), indent=1) + "\n")
    _write_rows(folder / "audit.csv", summary.lines)
    _write_rows(folder / "labels.csv", summary.labels)
    _write_rows(folder / "presence.csv", summary.presence)


def _write_rows(path: Path, rows: Iterable[Line | LabelLeak | Presence]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        for index, row in enumerate(rows):
            cells = dict(_cells(row))
            if index == 0:
                writer.writerow(cells)
            writer.writerow(cells.values())


def _cells(row: Line | LabelLeak | Presence) -> list[tuple[str, Any]]:
    """An interval becomes three columns: its mean under the field's own name."""
    cells: list[tuple[str, Any]] = []
    for field in fields(row):
        value = getattr(row, field.name)
        if isinstance(value, Interval):
            spread = {"": value.mean, "_low": value.low, "_high": value.high}
            cells += [(f"{field.name}{end}", f"{one:.4f}") for end, one in spread.items()]
        elif isinstance(value, float) and field.name != "ratio":
            cells.append((field.name, f"{value:.4f}"))
        else:
            cells.append((field.name, value))
    return cells
