"""``python -m experiments.benchmarks``: fedsens beside other libraries, and the README's tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.table import Table

from experiments.benchmarks.ckks_vector import compare_codecs, content_of
from experiments.benchmarks.comparisons import COMPARISONS
from experiments.benchmarks.maps import compare_methods
from experiments.benchmarks.page import SECTIONS, benchmark_page
from experiments.benchmarks.readme import BENCHMARKS, update_readme
from experiments.benchmarks.secagg import measure_secagg
from experiments.benchmarks.tables import methods_table, thresholds_table
from experiments.cases import console, environment
from fedsens.bench._round import bench_round, initial_state, measure_round, measuring_rounds
from fedsens.bench._scale import bench_scale
from fedsens.bench._tables import codec_table, round_table, scale_table
from fedsens.planning import predicted_memory, predicted_rounds

FEW_MAPS = ("lenet28", "lenet-100", "resnet18-10", "transformer")  # the other takes too long

app = typer.Typer(add_completion=False)


class Measured(NamedTuple):
    """A benchmark's outcome: tables for the page, figures for a JSON file."""

    tables: list[Table]
    content: Any


@app.command()
def main(
    parts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PART]...", help=f"{', '.join(SECTIONS)}; all if none is given."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the figures and the page.")] = BENCHMARKS,
    repeats: Annotated[int, typer.Option(min=1, help="The median of so many runs.")] = 3,
    cases: Annotated[
        list[str] | None,
        typer.Option("--case", help=f"Of the maps: {', '.join(COMPARISONS)}; repeatable."),
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Of each map.")] = None,
) -> None:
    """Measure fedsens beside others; takes about a quarter of an hour for all parts.

    All parts together also write the page of the benchmarks and, in the usual folder, the tables
    of the README.
    """  # noqa: DOC501 - the help of a command
    makers: dict[str, Callable[[], Measured]] = {
        "codec": lambda: codecs(repeats),
        "round": lambda: rounds(repeats),
        "scale": scales,
        "map": lambda: maps(cases or FEW_MAPS, samples, 1 if parts is None else repeats),
    }
    unknown = [*{*(parts or ())} - {*makers}, *{*(cases or ())} - {*COMPARISONS}]
    if unknown:
        known = ", ".join([*makers, *COMPARISONS])
        raise typer.BadParameter(f"expected parts and cases among {known}, got {unknown[0]!r}")
    out.mkdir(parents=True, exist_ok=True)
    tables: dict[str, list[Table]] = {}
    for name in parts or makers:
        with console.status(f"measuring: {name}"):
            result = makers[name]()
        tables[name] = result.tables
        for table in result.tables:
            console.print(table)
        (out / f"{name}.json").write_text(json.dumps(result.content, indent=2) + "\n")
    if tables.keys() == makers.keys():
        (out / "README.md").write_text(benchmark_page(tables))
        if out == BENCHMARKS:
            update_readme()


def codecs(repeats: int) -> Measured:
    """The codec beside TenSEAL's CKKSVector with the parameters of other projects."""
    rows = compare_codecs(repeats=repeats)
    return Measured([codec_table(rows, rows[0])], content_of(rows))


def rounds(repeats: int, model: str = "resnet18", images: int = 500, clients: int = 4) -> Measured:
    """A round beside plain Flower's FedAvg and SecAgg+, and beside what is planned."""
    report = bench_round(model, images, clients, repeats=repeats)
    plans = predicted_rounds(report, "precise", repeats)
    state = initial_state(model)
    with measuring_rounds():
        three = measure_round("ratio 1, compact", 1.0, state, clients, repeats, "compact")
        # Slow, and without a warm-up: SecAgg+ does the same in every round.
        secagg = measure_secagg(state, clients, repeats=1)
    report = replace(report, rows=(*report.rows, three, secagg))
    planned = {name: plan.round for name, plan in plans.items()}
    content = {"planned": {name: asdict(plan) for name, plan in plans.items()}}
    return Measured([round_table(report, planned)], report.content() | content)


def scales() -> Measured:
    """Growing models and federations beside plain Flower's FedAvg."""
    sweeps = bench_scale()
    content = {name: [asdict(row) for row in rows] for name, rows in sweeps.items()}
    return Measured([scale_table(sweeps, predicted_memory)], content)


def maps(names: Sequence[str], samples: int | None, repeats: int) -> Measured:
    """The sensitivity map beside torch.func, BackPACK, Opacus, and the literal definition."""
    reports = [compare_methods(COMPARISONS[name], samples, repeats) for name in names]
    tables = [make(report) for report in reports for make in (methods_table, thresholds_table)]
    content = {"environment": environment(), "cases": [asdict(report) for report in reports]}
    return Measured(tables, content)


if __name__ == "__main__":
    app()
