"""One run of a Flower app on a deployed SuperLink, followed until its final status."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from fedsens.errors import DeploymentError
from fedsens.protocol import PhaseReport, read_reports
from fedsens.simulation._app import FlowerApp
from fedsens.simulation._runner import COMPLETED, RunOutcome, reasons_in, run_command, status_of
from fedsens.simulation._superlink import SuperLink, program

POLL_SECONDS = 5.0


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
        time.sleep(POLL_SECONDS if status else 0)
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
