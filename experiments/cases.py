"""What every experiment does: measure case by case, keep what is done, write CSV and JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fedsens._tables import make_table
from fedsens.bench._map import machine

Case = dict[str, str | int | float]  # what tells one case from another
Row = dict[str, Any]  # a case and its figures
SEEDS = (0, 1, 2)  # of model, data and order, where a table is of several

OutFolder = Annotated[Path, typer.Option(help="Folder for the results.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Measure anew what is there already.")]

console = Console()


def measure_cases(
    cases: Sequence[Case],
    measure: Callable[[Case], Iterable[Row]],
    name: str,
    out: Path,
    fresh: bool = False,
) -> list[Row]:
    """Measure cases with a progress bar; an interrupted run continues where it was.

    After each case ``NAME.json`` holds all rows so far and the environment; in the end ``NAME.csv``
    holds the rows of these cases.

    Args:
        cases: what to measure.
        measure: gives the figures of a case, one or several rows of them.
        name: of the files.
        out: their folder; made if it is missing.
        fresh: whether to measure anew what is there already.

    Returns:
        The rows, in the order of the cases.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.json"
    rows = [] if fresh or not path.exists() else list(json.loads(path.read_text())["rows"])
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task(name, total=len(cases))
        for case in cases:
            if not rows_of(rows, case):
                progress.update(task, description=" ".join(map(str, case.values())))
                rows += [{**case, **figures} for figures in measure(case)]
                _replace(path, {"environment": environment(), "rows": rows})
            progress.advance(task)
        progress.update(task, description=name)
    chosen = [row for case in cases for row in rows_of(rows, case)]
    with (out / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(chosen[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _short(value) for key, value in row.items()} for row in chosen)
    return chosen


def rows_of(rows: Iterable[Row], case: Case) -> list[Row]:
    """The rows of a case.

    Args:
        rows: of all cases.
        case: the case.

    Returns:
        Those with all of its values.
    """
    return [row for row in rows if all(row.get(key) == value for key, value in case.items())]


def show(title: str, columns: Sequence[str], lines: Iterable[Sequence[str]], note: str) -> None:
    """Print a table, the first column to the left.

    Args:
        title: above it.
        columns: their headers.
        lines: the cells.
        note: below it.
    """
    rows = list(lines)
    texts = [[column, *cells] for column, *cells in zip(columns, *rows, strict=True)]
    # a number is not cut, a text may wrap
    wrapping = [i for i, column in enumerate(texts) if any(" " in text for text in column)]
    table = make_table(columns, rows, title=title, caption=note, wrapping=wrapping)
    console.print(table)


def environment() -> dict[str, Any]:
    """Versions of the compared libraries, the machine, and what the time is."""
    found = {}
    for package in ("torch", "backpack-for-pytorch", "opacus"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found | machine()


def _replace(path: Path, content: dict[str, Any]) -> None:
    new = path.with_suffix(".new")
    new.write_text(json.dumps(content, indent=1) + "\n")
    new.replace(path)


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
