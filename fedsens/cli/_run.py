"""``fedsens simulate``, ``submit`` and ``report``: run the app, and show what came of it."""

from __future__ import annotations

import json
import os
import tomllib
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsens._imports import require
from fedsens.cli._common import JsonFile, console, named_errors, write_json
from fedsens.errors import ConfigurationError

if TYPE_CHECKING:
    from fedsens.protocol import PhaseReport

ROUNDS, RATIO, POLICY = "num-server-rounds", "fedsens.ratio", "fedsens.policy"

Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-c",
        metavar="KEY=VALUE",
        help="Override a run-config key: -c data=mnist.npz -c fedsens.refresh-every=2",
    ),
]


def simulate(
    app_folder: Annotated[Path, typer.Argument(help="Folder of the Flower app.")] = Path(),
    clients: Annotated[int, typer.Option(min=1, help="Simulated clients.")] = 8,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Rounds, as -c num-server-rounds=N.")
    ] = None,
    ratio: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share to encrypt, as -c fedsens.ratio=R.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="Mask policy, as -c fedsens.policy=NAME.")
    ] = None,
    settings: Settings = None,
    baseline: Annotated[
        bool | None,
        typer.Option(
            help="Run at ratio 0 too, to compare; by default where the app has fedsens.ratio.",
            show_default=False,
        ),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="Metric to compare; by default an accuracy.")
    ] = None,
    cpus_per_client: Annotated[float, typer.Option(min=0.1, help="CPUs that Ray reserves.")] = 1.0,
    gpus_per_client: Annotated[float, typer.Option(min=0, help="GPUs likewise.")] = 0.0,
    key_file: Annotated[
        Path | None, typer.Option(help="Key for all clients (fedsens keygen), not agreement.")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    json_file: JsonFile = None,
) -> None:
    """Run the Flower simulation of the app in this folder, and sum it up.

    Works on any app whose strategy is wrapped in SelectiveEncryption; what is not given is as the
    app has it. Starts an isolated SuperLink, runs the app under selective encryption and again at
    ratio 0, checks both final statuses, opens the protected model with a client's key and verifies
    it against the clients' own records. Everything lands in runs/latest.
    """
    from fedsens.simulation import (
        FlowerApp,
        RunOptions,
        SimulationScreen,
        check_options,
        no_baseline,
        with_baseline,
    )
    from fedsens.simulation import simulate as run

    with named_errors():
        flags = {ROUNDS: rounds, RATIO: ratio, POLICY: policy}
        given = {key: json.dumps(value) for key, value in flags.items() if value is not None}
        app, config = FlowerApp.load(app_folder), given | overrides(settings or [])
        options = RunOptions(app, clients, cpus_per_client, gpus_per_client, config)
        compare = RATIO in app.config if baseline is None else baseline
        if compare and baseline is None and (why := no_baseline()):
            console.print(f"no run at ratio 0: {why}", soft_wrap=True)
            compare = False
        check_options(options, compare)
        for package in ("ray", "matplotlib"):
            require(package)
        from fedsens.simulation import draw_curves

        known = (app.value(ROUNDS, config), app.value(RATIO, config))
        with SimulationScreen(console, *known, compare, metric) as screen:
            show = partial(screen.show, "encrypted")
            summary = run(options, runs, show, key_file=key_file, metric=metric)
            try:
                if compare:
                    show = partial(screen.show, "baseline")
                    summary = with_baseline(summary, options, show, metric)
            finally:  # what has completed is told also where the baseline fails
                screen.stop()
                draw_curves(summary, summary.folder / "curves.png")
                screen.conclude(summary, runs / "latest")
                write_json(json_file, json.loads(summary.model_dump_json()))


def submit(
    app_folder: Annotated[Path, typer.Argument(help="Folder of the Flower app.")] = Path(),
    superlink: Annotated[
        str, typer.Argument(help="Name of the SuperLink in Flower's configuration.")
    ] = "local",
    settings: Settings = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(help="Folder on the server for reports and the protected model."),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Run the app on a deployed SuperLink and wait for the final status.

    Unlike *flwr run*, exits with 1 if the run fails. Where the server's output folder is visible
    from here, shows each phase and sums the run up. Ctrl-C leaves the run going.
    """
    from fedsens.protocol import load_protected
    from fedsens.simulation import FlowerApp, configured, follow, summarize, tables
    from fedsens.simulation import submit as run

    with named_errors():
        app, config = FlowerApp.load(app_folder), overrides(settings or [])
        if output_dir is not None:
            config["output-dir"] = json.dumps(str(output_dir))
        configured(app, config)
        run_id = run(app, superlink, config)
        stop = f"flwr stop {run_id} {superlink}"
        console.print(f"run {run_id} submitted; stop it by: {stop}", soft_wrap=True)
        folder = output_dir or Path(os.devnull)

        def show(news: str) -> None:
            console.print(news, soft_wrap=True, highlight=False, markup=False)

        def show_phase(report: PhaseReport) -> None:
            show(str(report))
            for node, reason in report.reasons.items():
                show(f"  node {node} is lost: {reason}")
            for warning in report.warnings:
                show(f"  Warning: {warning}")

        outcome = follow(superlink, run_id, folder, show, show_phase)
        if not (folder / "protected.safetensors").exists():
            where = f"in {output_dir} of the server" if output_dir else "not kept: no --output-dir"
            console.print(f"reports and protected model: {where}")
            return
        summary = summarize(outcome, load_protected(folder / "protected.safetensors"))
        console.print(*tables(summary))
        console.print(f"protected model: {folder}/protected.safetensors")
        write_json(json_file, json.loads(summary.model_dump_json()))


def overrides(settings: list[str]) -> dict[str, str]:
    """Run-config overrides as TOML, from KEY=VALUE; a bare word is a string."""
    wrong = [setting for setting in settings if "=" not in setting]
    if wrong:
        raise ConfigurationError(f"expected KEY=VALUE after --set, got {', '.join(wrong)}")
    pairs = (setting.split("=", 1) for setting in settings)
    return {key.strip(): _toml(value.strip()) for key, value in pairs}


def _toml(value: str) -> str:
    try:
        tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return json.dumps(value)  # a bare word: the shell has taken its quotes
    return value


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="FOLDER...",
            help="Runs (runs/latest), studies of fedsens audit, results (experiments).",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The page.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Its title.")] = "fedsens report",
) -> None:
    """Write one self-contained HTML page of runs, studies and experiments."""
    from fedsens.reporting import page, result_sections, run_section

    with named_errors():
        sections: list[tuple[str, str]] = []
        for folder in folders:
            if (folder / "summary.json").exists():
                sections.append(run_section(folder))
            else:
                sections += result_sections(folder)
        made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        note = f"Made by fedsens {version('fedsens')} on {made}."
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page(title, note, sections))
    console.print(f"{out}: {', '.join(name for name, _ in sections)}", soft_wrap=True)
