"""``python -m experiments.rules``: the figures of docs/explanation/sensitivity.md."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from experiments.rules.figure import draw
from experiments.rules.results import Summary, summarise, write
from experiments.rules.run import Row, run_seed

RESULTS = Path(__file__).parent / "results"

app = typer.Typer(add_completion=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder for rules.json, rules.csv, rules.png.")] = (
        RESULTS
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Models to train.")] = 3,
    epochs: Annotated[str, typer.Option(help="Where to measure, increasing.")] = "0,1,3,5,13,30",
    images: Annotated[int | None, typer.Option(min=2, help="Training images, for a try.")] = None,
) -> None:
    """Train LeNet on the digits and compare the rules `vector` and `true_label` on the way."""
    torch.set_num_threads(1)
    console = Console()
    stops = _stops(epochs)
    out.mkdir(parents=True, exist_ok=True)
    started = time.process_time()
    summary = summarise(_run(console, seeds, stops, images, out))
    draw(summary, out / "rules.png")
    console.print(_table(summary, seeds))
    seconds = time.process_time() - started
    console.print(f"{seconds:.0f} s of CPU time; rules.json, rules.csv and rules.png in {out}")


def _stops(epochs: str) -> list[int]:
    try:
        stops = [int(part) for part in epochs.split(",")]
    except ValueError:
        stops = []
    if not stops or stops[0] < 0 or stops != sorted(set(stops)):
        raise typer.BadParameter(
            f"expected increasing numbers such as 0,1,3, got {epochs!r}", param_hint="--epochs"
        )
    return stops


def _run(
    console: Console, seeds: int, stops: list[int], images: int | None, out: Path
) -> list[Row]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    rows: list[Row] = []
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("models measured", total=seeds * len(stops))
        for seed in range(seeds):
            rows += run_seed(seed, stops, partial(progress.advance, task), images)
            write(rows, out)  # an interrupted run keeps the seeds that are done
    return rows


def _table(summary: Summary, seeds: int) -> Table:
    """Means over seeds; rules.json has the ranges too."""
    title = f"after epochs; mean of {seeds} seeds; top 10 % if no other"
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("overlap")
    for epochs in summary:
        table.add_column(str(epochs), justify="right", no_wrap=True)
    for name in next(iter(summary.values())):
        table.add_row(name, *(f"{figures[name].mean:.2g}" for figures in summary.values()))
    return table


if __name__ == "__main__":
    app()
