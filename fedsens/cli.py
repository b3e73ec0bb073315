"""The command line: ``fedsens``, or ``python -m fedsens.cli``."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fedsens.errors import ConfigurationError, FedSensError
from fedsens.mapping.command import map_command

app = typer.Typer(
    help="Selective homomorphic encryption for federated learning with Flower.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,  # locals could be keys
    add_completion=False,
)
bench = typer.Typer(help="Measure costs on this machine, as ratios.", no_args_is_help=True)
app.add_typer(bench, name="bench")
console = Console()

JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        envvar="FEDSENS_PASSPHRASE_FILE", help="File with the passphrase (mode 0600), not a prompt."
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-c",
        metavar="KEY=VALUE",
        help="Override a run-config key: -c data=mnist.npz -c fedsens.refresh-every=2",
    ),
]


@contextmanager
def named_errors() -> Iterator[None]:
    """Show an error of fedsens as one sentence and exit with 1."""
    try:
        yield
    except FedSensError as error:
        Console(stderr=True).print(f"[bold red]{type(error).__name__}[/]: ", end="")
        Console(stderr=True, markup=False, highlight=False).print(str(error), soft_wrap=True)
        raise typer.Exit(1) from None


def write_json(path: Path | None, content: Any) -> None:
    """Write figures to a file, if one was asked for."""
    if path is not None:
        path.write_text(json.dumps(content, indent=2) + "\n")


@app.command()
def simulate(
    app_folder: Annotated[Path, typer.Argument(help="Folder of the Flower app.")] = Path(),
    clients: Annotated[int, typer.Option(min=1, help="Simulated clients.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds.")] = 5,
    ratio: Annotated[float, typer.Option(min=0, max=1, help="Share to encrypt.")] = 0.1,
    policy: Annotated[str, typer.Option(help="Mask policy.")] = "sensitivity",
    settings: Settings = None,
    baseline: Annotated[bool, typer.Option(help="Run at ratio 0 too, to compare.")] = True,
    cpus_per_client: Annotated[float, typer.Option(min=0.1, help="CPUs that Ray reserves.")] = 1.0,
    gpus_per_client: Annotated[float, typer.Option(min=0, help="GPUs likewise.")] = 0.0,
    key_file: Annotated[
        Path | None, typer.Option(help="Key for all clients (fedsens keygen), not agreement.")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    json_file: JsonFile = None,
) -> None:
    """Run the Flower simulation of the app in this folder, and sum it up.

    Starts an isolated SuperLink, runs the app under selective encryption and again at ratio 0,
    checks both final statuses, opens the protected model with a client's key and verifies it
    against the clients' own records. Everything lands in runs/latest.
    """
    from fedsens.simulation.runner import RunOptions
    from fedsens.simulation.screen import SimulationScreen
    from fedsens.simulation.simulate import simulate as run

    with named_errors():
        options = RunOptions(
            app=_app(app_folder),
            clients=clients,
            cpus_per_client=cpus_per_client,
            gpus_per_client=gpus_per_client,
            config={
                "num-server-rounds": str(rounds),
                "fedsens.ratio": repr(ratio),
                "fedsens.policy": json.dumps(policy),
                **_overrides(settings or []),
            },
        )
        with SimulationScreen(console, rounds, ratio, baseline) as screen:
            summary = run(options, runs, baseline=baseline, progress=screen.show, key_file=key_file)
        from fedsens.simulation.figure import draw

        draw(summary, summary.folder / "curves.png")
        screen.conclude(summary)
        write_json(json_file, json.loads(summary.model_dump_json()))


@app.command()
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
    from fedsens.deployment.submit import follow
    from fedsens.deployment.submit import submit as run
    from fedsens.protocol.export import load_protected
    from fedsens.simulation.screen import tables
    from fedsens.simulation.summary import summarize

    with named_errors():
        config = _overrides(settings or [])
        if output_dir is not None:
            config["output-dir"] = json.dumps(str(output_dir))
        run_id = run(_app(app_folder), superlink, config)
        stop = f"flwr stop {run_id} {superlink}"
        console.print(f"run {run_id} submitted; stop it by: {stop}", soft_wrap=True)
        folder = output_dir or Path(os.devnull)

        def show(news: object) -> None:
            console.print(str(news), soft_wrap=True, highlight=False)

        outcome = follow(superlink, run_id, folder, show, show)
        if not (folder / "protected.safetensors").exists():
            where = f"in {output_dir} of the server" if output_dir else "not kept: no --output-dir"
            console.print(f"reports and protected model: {where}")
            return
        summary = summarize(outcome, load_protected(folder / "protected.safetensors"))
        console.print(*tables(summary))
        console.print(f"protected model: {folder}/protected.safetensors")
        write_json(json_file, json.loads(summary.model_dump_json()))


@app.command()
def keygen(
    path: Annotated[Path, typer.Argument(help="The new key file (mode 0600).")],
    preset: Annotated[str, typer.Option(help="compact, balanced or precise.")] = "compact",
    value_range: Annotated[
        float, typer.Option(min=0, help="Range R of the parameters; 0 is the preset's own.")
    ] = 0.0,
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help="Lock the key; asks for a passphrase.")
    ] = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make a secret key for all clients. The server must never see this file.

    Beside it lies its public half, NAME.public.json, which the server may have. To rotate keys,
    make several, lay them into one folder on every client and set fedsens.rotate-at on the server.
    """
    from fedsens.crypto import CkksParameters, generate_key
    from fedsens.protocol.keyfile import PublicParameters, save_key

    public = path.with_name(f"{path.stem}.public.json")
    with named_errors():
        _must_be_new(path, public)
        parameters = CkksParameters.preset(preset, value_range or None)
        word = _passphrase(passphrase_file, confirm=True) if passphrase or passphrase_file else None
        key = generate_key(parameters)
        save_key(key, path, word)
        PublicParameters.of(key).save(public)
    locked = "" if word is None else "locked, "
    console.print(
        f"wrote {path} ({locked}mode 0600) and {public}: fingerprint {key.fingerprint}, "
        f"{parameters.security_bits}-bit security",
        soft_wrap=True,
    )


@app.command("open")
def open_model(
    model: Annotated[Path, typer.Argument(help="Protected model or checkpoint (safetensors).")],
    key: Annotated[Path, typer.Option(help="The clients' key file.")],
    out: Annotated[Path, typer.Option(help="Where to write the opened state dict.")],
    passphrase_file: PassphraseFile = None,
) -> None:
    """Open a protected model into an ordinary safetensors state dict."""
    from fedsens.protocol.describe import load_model
    from fedsens.protocol.export import save_model
    from fedsens.protocol.keyfile import load_key
    from fedsens.protocol.model import digest_of

    with named_errors():
        protected = load_model(model)
        arrays = protected.open(load_key(key, lambda: _passphrase(passphrase_file)))
        save_model(arrays, out)
    console.print(
        f"wrote {out}: {protected.layout.size:,} parameters of round {protected.round}, "
        f"{protected.mask.k:,} of them decrypted; sha256 {digest_of(arrays)}",
        soft_wrap=True,
    )


@app.command()
def inspect(
    file: Annotated[
        Path, typer.Argument(help="Key, public parameters, model, checkpoint, roster or summary.")
    ],
    json_file: JsonFile = None,
) -> None:
    """Say what a file of fedsens is: parameters, security level and digests, never a secret."""
    from fedsens.protocol.describe import describe

    with named_errors():
        facts = describe(file)
    for name, value in facts.items():
        shown = value if isinstance(value, str) else json.dumps(value)
        console.print(f"{name.replace('_', ' ')}: {shown}", soft_wrap=True, markup=False)
    write_json(json_file, facts)


@app.command()
def identity(
    path: Annotated[Path, typer.Argument(help="The client's identity file (mode 0600).")],
) -> None:
    """Print a client's X25519 public key; its identity file is made if there is none.

    For key agreement without provisioned keys: every client makes its identity, names the file as
    fedsens-identity-file, and hands the printed line to whoever writes the roster.
    """
    from fedsens.protocol.roster import load_identity

    with named_errors():
        public = load_identity(path).public_key().public_bytes_raw()
    typer.echo(public.hex())


@app.command()
def roster(
    path: Annotated[Path, typer.Argument(help="The new roster file.")],
    public_keys: Annotated[list[str], typer.Argument(help="What fedsens identity printed.")],
) -> None:
    """Write the roster of all clients that may share a key (fedsens-roster-file)."""
    from fedsens.protocol.envelope import roster_fingerprint
    from fedsens.protocol.roster import write_roster

    with named_errors():
        _must_be_new(path)
        keys = write_roster(path, public_keys)
    console.print(f"wrote {path}: {len(keys)} clients, fingerprint {roster_fingerprint(keys)}")


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
            "several. Default: all, about ten minutes.",
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


app.command("map")(named_errors()(map_command))


def _passphrase(path: Path | None, confirm: bool = False) -> str:
    from fedsens.protocol.keyfile import read_passphrase

    if path is not None:
        return read_passphrase(path)
    return str(typer.prompt("Passphrase", hide_input=True, confirmation_prompt=confirm, err=True))


def _must_be_new(*paths: Path) -> None:
    taken = [str(path) for path in paths if path.exists()]
    if taken:
        raise ConfigurationError(f"expected new files, got {', '.join(taken)}; choose other names")


def _app(folder: Path) -> Path:
    if not (folder / "pyproject.toml").is_file():
        raise ConfigurationError(
            f"expected a Flower app with a pyproject.toml in {folder.resolve()}, found none; "
            "run fedsens simulate in the app's folder or name it"
        )
    return folder


def _overrides(settings: list[str]) -> dict[str, str]:
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


if __name__ == "__main__":
    app()
