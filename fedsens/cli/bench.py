"""``fedsens bench``: what things cost on this machine."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from fedsens.cli.common import JsonFile, console, named_errors, write_json

bench = typer.Typer(help="Measure costs on this machine, as ratios.", no_args_is_help=True)


@bench.command("codec")
def bench_codec(
    values: Annotated[int, typer.Option(min=4096, help="Values per client.")] = 2**20,
    repeats: Annotated[int, typer.Option(min=1, help="The median of so many runs.")] = 3,
    json_file: JsonFile = None,
) -> None:
    """The codec beside TenSEAL's CKKSVector with other projects' parameters."""
    from fedsens.bench.codec import bench_codec as run
    from fedsens.bench.screen import codec_table

    with named_errors():
        rows = run(values=values, repeats=repeats)
    console.print(codec_table(rows))
    write_json(json_file, [asdict(row) for row in rows])


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
    repeats: Annotated[int, typer.Option(min=1, help="The median of so many rounds.")] = 3,
    json_file: JsonFile = None,
) -> None:
    """The sensitivity map beside torch.func, BackPACK, Opacus, the literal loop and training.

    BackPACK and Opacus come with pip install 'fedsens[bench]'; without them their rows are absent.
    """
    from fedsens.bench.map import bench_case, environment
    from fedsens.bench.map_cases import chosen_cases
    from fedsens.bench.map_screen import case_view

    reports = []
    with named_errors():
        for case in chosen_cases(cases or []):
            with console.status(f"measuring {case.title}"):
                reports.append(bench_case(case, samples, repeats))
            console.print(case_view(reports[-1]))
    content = {"environment": environment(), "cases": [asdict(report) for report in reports]}
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

    Server and clients are processes of their own, and the clients take turns.
    """
    from fedsens.bench import scale
    from fedsens.bench.scale_screen import scale_table
    from fedsens.mask import mask_count
    from fedsens.planning.memory import client_memory, server_memory

    def plan(row: scale.ScaleRow) -> tuple[int, int]:
        count = mask_count(row.ratio or 0.0, row.parameters)
        return server_memory(row.parameters, count, row.clients), client_memory(
            row.parameters, count
        )

    with named_errors(), console.status("measuring federations") as status:
        rows = scale.bench_scale(
            parameters or scale.PARAMETERS,
            clients or scale.CLIENTS,
            ratio,
            lambda row: status.update(f"measured {row.parameters:,} x {row.clients}"),
        )
    console.print(scale_table(rows, plan))
    write_json(json_file, {name: [asdict(row) for row in sweep] for name, sweep in rows.items()})


@bench.command("round")
def bench_round(
    model: Annotated[str, typer.Option(help="lenet or resnet18.")] = "resnet18",
    images: Annotated[int, typer.Option(min=1, help="Images per client, one epoch.")] = 500,
    clients: Annotated[int, typer.Option(min=2, help="Clients.")] = 4,
    ratios: Annotated[
        list[float] | None,
        typer.Option("--ratio", min=0, max=1, help="Repeatable; default 0, 0.1, 0.3, 0.5, 1."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="The median of so many rounds.")] = 3,
    preset: Annotated[str, typer.Option(help="compact, balanced or precise.")] = "compact",
    json_file: JsonFile = None,
) -> None:
    """One federated round under selective encryption beside plain Flower FedAvg.

    The last columns compare what fedsens plan predicts with what was measured.
    """
    from fedsens.bench.round import RATIOS
    from fedsens.bench.round import bench_round as run
    from fedsens.bench.round_screen import round_table
    from fedsens.crypto import CkksParameters
    from fedsens.planning.calibrate import calibrate
    from fedsens.planning.plan import Federation, make_plan

    with named_errors(), console.status("measuring rounds"):
        report = run(model, images, clients, ratios or RATIOS, repeats, preset)
        codec, speed = CkksParameters.preset(preset), calibrate(preset, repeats)
    federation = Federation(report.parameters, clients, 1, codec, speed, link=1e8)
    plans = {
        row.name: make_plan(federation, row.ratio) for row in report.rows if row.ratio is not None
    }
    planned = {n: (each.bytes_up + each.bytes_down, each.cpu_seconds) for n, each in plans.items()}
    console.print(round_table(report, planned))
    content = {"planned": {name: asdict(each) for name, each in plans.items()}}
    write_json(json_file, report.content() | content)
