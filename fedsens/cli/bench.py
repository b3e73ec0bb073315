"""``fedsens bench``: what things cost on this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from fedsens.cli import measure
from fedsens.cli.common import JsonFile, console, named_errors, write_json

bench = typer.Typer(help="Measure costs on this machine, as ratios.", no_args_is_help=True)

FEW_MAPS = ("lenet28", "lenet-100", "resnet18-10", "transformer")  # the other takes too long

Repeats = Annotated[int, typer.Option(min=1, help="The median of so many runs.")]
Ratios = Annotated[
    list[float] | None,
    typer.Option("--ratio", min=0, max=1, help="Repeatable; default 0, 0.1, 0.3, 0.5, 1."),
]


@bench.command("codec")
def bench_codec(
    values: Annotated[int, typer.Option(min=4096, help="Values per client.")] = 2**20,
    repeats: Repeats = 3,
    json_file: JsonFile = None,
) -> None:
    """The codec beside TenSEAL's CKKSVector with other projects' parameters."""
    with named_errors():
        _show(measure.codec(values, repeats), json_file)


@bench.command("map")
def bench_map(
    cases: Annotated[
        list[str] | None,
        typer.Option(
            "--case",
            help="lenet28, lenet-100, resnet18-10, resnet18-100 or transformer; repeat it for "
            "several. Default: all, about twenty minutes.",
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Samples per map, instead of each case's own number.")
    ] = None,
    repeats: Repeats = 3,
    json_file: JsonFile = None,
) -> None:
    """The sensitivity map beside torch.func, BackPACK, Opacus, the literal loop and training.

    BackPACK and Opacus come with pip install 'fedsens[bench]'; without them their rows are absent.
    """
    with named_errors(), console.status("measuring maps") as status:
        _show(measure.maps(cases or [], samples, repeats, status.update), json_file)


@bench.command("scale")
def bench_scale(
    parameters: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Repeatable; default 10000 to 10000000. 100000000 takes minutes."),
    ] = None,
    clients: Annotated[
        list[int] | None, typer.Option(min=1, help="Repeatable; default 1, 10, 50 and 200.")
    ] = None,
    ratio: Annotated[float, typer.Option(min=0, max=1, help="Share that is encrypted.")] = 1.0,
    json_file: JsonFile = None,
) -> None:
    """Time and peak memory of server and clients as models and federations grow.

    Server and clients are processes of their own, and the clients take turns. The last columns
    compare the memory that fedsens plan predicts with what was measured.
    """
    with named_errors(), console.status("measuring federations") as status:
        _show(measure.scales(parameters or [], clients or [], ratio, status.update), json_file)


@bench.command("round")
def bench_round(
    model: Annotated[str, typer.Option(help="lenet or resnet18.")] = "resnet18",
    images: Annotated[int, typer.Option(min=1, help="Images per client, one epoch.")] = 500,
    clients: Annotated[int, typer.Option(min=2, help="Clients.")] = 4,
    ratios: Ratios = None,
    repeats: Repeats = 3,
    preset: Annotated[str, typer.Option(help="compact, balanced or precise.")] = "compact",
    json_file: JsonFile = None,
) -> None:
    """One federated round under selective encryption beside plain Flower FedAvg and SecAgg+.

    The last columns compare what fedsens plan predicts with what was measured.
    """
    with named_errors(), console.status("measuring rounds"):
        _show(measure.rounds(model, images, clients, ratios or [], repeats, preset), json_file)


@bench.command("all")
def bench_all(
    out: Annotated[Path, typer.Option(help="Folder for README.md and the figures.")] = Path(
        "docs/benchmarks"
    ),
    repeats: Repeats = 3,
) -> None:
    """All of them, with fewer maps: a page with the tables, and a JSON file for each.

    Takes about a quarter of an hour.
    """
    from fedsens.reporting.benchmarks import benchmark_page

    parts: dict[str, Callable[[Any], measure.Measured]] = {
        "codec": lambda status: measure.codec(2**20, repeats),
        "round": lambda status: measure.rounds("resnet18", 500, 4, [], repeats, "compact"),
        "scale": lambda status: measure.scales([], [], 1.0, status.update),
        "map": lambda status: measure.maps(FEW_MAPS, None, 1, status.update),
    }
    with named_errors(), console.status("") as status:
        out.mkdir(parents=True, exist_ok=True)
        pages: dict[str, list[Table]] = {}
        for name, work in parts.items():
            status.update(f"measuring: {name}")
            result = work(status)
            _show(result, out / f"{name}.json")
            pages[name] = result.tables
        (out / "README.md").write_text(benchmark_page(pages))
    console.print(f"README.md and {', '.join(f'{name}.json' for name in pages)} in {out}")


def _show(result: measure.Measured, json_file: Path | None) -> None:
    for table in result.tables:
        console.print(table)
    write_json(json_file, result.content)
