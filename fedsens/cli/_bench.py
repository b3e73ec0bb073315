"""``fedsens bench``: what fedsens costs on this machine."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from fedsens.cli._common import JsonFile, console, named_errors, write_json

bench = typer.Typer(help="Measure costs on this machine, as ratios.", no_args_is_help=True)

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
    """The codec: speed, bytes and errors of every preset."""
    from fedsens.bench import bench_codec, codec_table

    with named_errors():
        rows = bench_codec(values=values, repeats=repeats)
        console.print(codec_table(rows))
        write_json(json_file, [asdict(row) for row in rows])


@bench.command("map")
def bench_map(
    cases: Annotated[
        list[str] | None,
        typer.Option(
            "--case",
            help="lenet28, lenet-100, resnet18-10, resnet18-100, transformer, hf-bert or hf-vit; "
            "repeat it for several. Default: all but the last two, which take transformers; some "
            "minutes.",
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Samples per map, instead of each case's own number.")
    ] = None,
    repeats: Repeats = 3,
    json_file: JsonFile = None,
) -> None:
    """The sensitivity map by each rule, in training steps."""
    from fedsens.bench import bench_map, chosen_cases, machine, map_table

    reports = []
    with named_errors(), console.status("measuring maps") as status:
        for case in chosen_cases(cases or []):
            status.update(f"measuring {case.title}")
            reports.append(bench_map(case, samples, repeats))
            console.print(map_table(reports[-1]))
        content = {"environment": machine(), "cases": [asdict(report) for report in reports]}
        write_json(json_file, content)


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
    from fedsens.bench import CLIENTS, PARAMETERS, bench_scale, scale_table
    from fedsens.planning import predicted_memory

    with named_errors(), console.status("measuring federations") as status:
        sweeps = bench_scale(
            parameters or PARAMETERS,
            clients or CLIENTS,
            ratio,
            lambda row: status.update(f"measured {row.parameters:,} x {row.clients}"),
        )
        console.print(scale_table(sweeps, predicted_memory))
        write_json(json_file, {n: [asdict(row) for row in rows] for n, rows in sweeps.items()})


@bench.command("round")
def bench_round(
    model: Annotated[str, typer.Option(help="lenet or resnet18.")] = "resnet18",
    images: Annotated[int, typer.Option(min=1, help="Images per client, one epoch.")] = 500,
    clients: Annotated[int, typer.Option(min=2, help="Clients.")] = 4,
    ratios: Ratios = None,
    repeats: Repeats = 3,
    preset: Annotated[str, typer.Option(help="tiny, compact, precise or exact.")] = "precise",
    json_file: JsonFile = None,
) -> None:
    """One federated round under selective encryption beside plain Flower FedAvg.

    The last columns compare what fedsens plan predicts with what was measured.
    """
    from fedsens.bench import RATIOS, bench_round, round_table
    from fedsens.planning import predicted_rounds

    with named_errors(), console.status("measuring rounds"):
        report = bench_round(model, images, clients, ratios or RATIOS, repeats, preset)
        plans = predicted_rounds(report, preset, repeats)
        console.print(round_table(report, {name: each.round for name, each in plans.items()}))
        planned = {name: asdict(each) for name, each in plans.items()}
        write_json(json_file, report.content() | {"planned": planned})
