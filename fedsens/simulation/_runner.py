"""One run of a Flower app on a SuperLink, watched until its final status.

In a simulation the SuperLink is our own, and ``flwr run`` streams its log; a deployed one is
submitted to, and asked for the status of the run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from fedsens.errors import DeploymentError, SimulationError
from fedsens.protocol import PhaseReport, read_reports
from fedsens.simulation._app import FlowerApp
from fedsens.simulation._superlink import SuperLink, program

COMPLETED = "finished:completed"
POLL_SECONDS, REMOTE_POLL_SECONDS = 0.3, 5.0
LOG_LINES, MOST_CLIENTS = 15, 5
ANSI = re.compile(r"\x1b\[[0-9;]*m")
# The last line of a traceback, behind the name of the actor where Ray passes on a client's.
RAISED = re.compile(
    r"(?P<actor>\(\w+ pid=\d+\) )?(?P<raised>[\w.]*(Error|Exception|Exit|Replies): .*)"
)
OF_FLOWER = ("Simulation Runtime crashed.", "Ending simulation.")  # which say no more than that


@dataclass(frozen=True)
class RunOptions:
    """What to run.

    Attributes:
        app: the Flower app.
        clients: number of simulated SuperNodes.
        cpus_per_client: CPUs that Ray reserves for each client; decides how many run at once.
        gpus_per_client: GPUs likewise, a fraction to share one.
        config: run-config overrides, each value in TOML.
    """

    app: FlowerApp
    clients: int
    cpus_per_client: float = 1.0
    gpus_per_client: float = 0.0
    config: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RunOutcome:
    """A run that completed.

    Attributes:
        run_id: Flower's number of the run.
        status: Flower's final status.
        seconds: wall time of ``flwr run``, start-up of Ray and actors included.
        reports: what each phase cost.
    """

    run_id: str
    status: str
    seconds: float
    reports: list[PhaseReport]


def run_app(
    link: SuperLink,
    options: RunOptions,
    folder: Path,
    on_report: Callable[[PhaseReport], None],
) -> RunOutcome:
    """Run an app to its end, with each report as the server writes it.

    The folder gets the app's output and Flower's log.

    Raises:
        SimulationError: the run did not complete; the text ends with the reasons in the log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log, started = folder / "flower.log", time.monotonic()
    run_id, status, reports = _attempt(link, options, folder, log, on_report)
    if status != COMPLETED and not reports and started_late(log.read_text(errors="replace")):
        run_id, status, reports = _attempt(link, options, folder, log, on_report)
    if status != COMPLETED:
        raise SimulationError(
            f"expected the run to end as {COMPLETED!r}, got {status!r}; the whole log is {log}\n"
            f"{reasons_in(log.read_text(errors='replace'))}"
        )
    return RunOutcome(run_id, status, time.monotonic() - started, reports)


def started_late(log: str) -> bool:
    """Whether Ray's node took longer than Ray waits, 30 s, as it does on a busy machine."""
    return "The current node timed out during startup" in log


def _attempt(
    link: SuperLink,
    options: RunOptions,
    folder: Path,
    log: Path,
    on_report: Callable[[PhaseReport], None],
) -> tuple[str, str, list[PhaseReport]]:
    """Run an app once: the number of the run, its final status, and its reports."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            _command(link, options, folder),
            cwd=link.folder,
            env=dict(link.environment),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            reports = _watch(process, folder / "reports.jsonl", on_report)
        finally:
            process.terminate()
    return *_outcome(link, log), reports


def run_command(
    link: SuperLink, app: FlowerApp, config: Mapping[str, str], overrides: Path
) -> list[str]:
    """``flwr run`` and its arguments; a file is written for the overrides, each value in TOML."""
    # One file: of several -c options with a dotted key Flower would keep the last table only.
    overrides.write_text("".join(f"{key} = {value}\n" for key, value in config.items()))
    return [program("flwr"), "run", str(app.folder), link.name, "-c", str(overrides)]


def status_of(link: SuperLink, run_id: str) -> str:
    """Flower's status of a run, such as ``finished:failed``; ``unknown`` without an answer.

    ``flwr run`` itself ends well even when the ServerApp failed.
    """
    command = [program("flwr"), "list", link.name, "--run-id", run_id, "--format", "json"]
    answer = subprocess.run(
        command, cwd=link.folder, env=dict(link.environment), capture_output=True, check=False
    )
    try:
        return str(json.loads(answer.stdout)["runs"][0]["status"])
    except (ValueError, KeyError, IndexError):
        return "unknown"


def reasons_in(log: str) -> str:
    """Why a run failed, from Flower's log: the ServerApp's last exception, then those of clients.

    It is the end of the log where there is none.
    """
    lines = [ANSI.sub("", line).rstrip() for line in log.splitlines()]
    raised = [found for line in lines if (found := RAISED.match(line))]
    server = [each["raised"] for each in raised if not each["actor"]]
    server = [text for text in server if not text.endswith(OF_FLOWER)][-1:]
    clients = dict.fromkeys(f"a client: {found['raised']}" for found in raised if found["actor"])
    return "\n".join([*server, *list(clients)[:MOST_CLIENTS]] or lines[-LOG_LINES:])


def _command(link: SuperLink, options: RunOptions, folder: Path) -> list[str]:
    federation = [
        f"num-supernodes={options.clients}",
        f"client-resources-num-cpus={options.cpus_per_client:g}",
    ]
    if options.gpus_per_client:
        federation.append(f"client-resources-num-gpus={options.gpus_per_client:g}")
    place = {"output-dir": json.dumps(str(folder.resolve()))}
    config = options.app.declared(place) | dict(options.config)
    command = run_command(link, options.app, config, folder.resolve() / "overrides.toml")
    return [*command, "--stream", "--federation-config", " ".join(federation)]


def _watch(
    process: subprocess.Popen[bytes], path: Path, on_report: Callable[[PhaseReport], None]
) -> list[PhaseReport]:
    seen = 0
    while True:
        ended = process.poll() is not None
        reports = read_reports(path)
        for report in reports[seen:]:
            on_report(report)
        seen = len(reports)
        if ended:
            return reports
        time.sleep(POLL_SECONDS)


def _outcome(link: SuperLink, log: Path) -> tuple[str, str]:
    found = re.search(r"started run (\d+)", log.read_text(errors="replace"))
    return (found[1], status_of(link, found[1])) if found else ("", "not started")


def submit(app: FlowerApp, name: str, config: Mapping[str, str]) -> str:
    """Submit an app.

    Args:
        app: the Flower app.
        name: of the SuperLink in Flower's configuration (``flwr config list``).
        config: run-config overrides, each value in TOML.

    Returns:
        Flower's number of the run, which has just begun.

    Raises:
        DeploymentError: the SuperLink did not take the run; the text is Flower's.
    """
    with TemporaryDirectory() as folder:
        overrides = Path(folder) / "overrides.toml"
        command = run_command(_link(name), app, config, overrides)
        answer = subprocess.run(
            [*command, "--format", "json"], capture_output=True, text=True, check=False
        )
    try:
        return str(_json(answer.stdout)["run-id"])
    except (ValueError, KeyError):
        raise DeploymentError(
            f"expected the SuperLink {name!r} to take the run, it did not; Flower says: "
            f"{answer.stdout.strip()} {answer.stderr.strip()}"
        ) from None


def follow(
    name: str,
    run_id: str,
    output: Path,
    on_status: Callable[[str], None],
    on_report: Callable[[PhaseReport], None],
) -> RunOutcome:
    """Wait until a run has finished; a SuperLink that is away for a while is waited for.

    Args:
        name: of the SuperLink in Flower's configuration.
        run_id: Flower's number of the run.
        output: the server's output folder; unless it is visible from here there are no reports.
        on_status: called with each new status.
        on_report: called with each phase's report.

    Returns:
        The outcome.

    Raises:
        DeploymentError: the run failed or was stopped.
    """
    link, started = _link(name), time.monotonic()
    status, reports = "", list[PhaseReport]()
    while not status.startswith("finished"):
        time.sleep(REMOTE_POLL_SECONDS if status else 0)
        before, status = status, status_of(link, run_id)
        if status != before:
            on_status(status)
        seen, reports = len(reports), read_reports(output / "reports.jsonl")
        for report in reports[seen:]:
            on_report(report)
    if status != COMPLETED:
        command = ["log", run_id, name, "--show"]
        told = subprocess.run([program("flwr"), *command], capture_output=True, check=False)
        raise DeploymentError(
            f"expected run {run_id} to end as {COMPLETED!r}, got {status!r}; the whole log: flwr "
            f"{' '.join(command)}\n{reasons_in(told.stdout.decode(errors='replace'))}"
        )
    return RunOutcome(run_id, status, time.monotonic() - started, reports)


def _link(name: str) -> SuperLink:
    return SuperLink(os.environ, Path.cwd(), name)


def _json(text: str) -> dict[str, str]:
    # Warnings about the app precede it.
    return dict(json.loads(text[text.index("{") : text.rindex("}") + 1]))
