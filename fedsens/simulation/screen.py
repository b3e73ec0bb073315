"""What a person sees of a simulation: live progress, then tables."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fedsens.protocol.report import PhaseReport
from fedsens.simulation.summary import Bytes, RunSummary, SimulationSummary

NOTES = {
    "keys": "clients hold the key",
    "map": "sensitivity maps added under encryption",
    "mask": "key holder opened the aggregate and returned the mask",
}


class SimulationScreen:
    """Shows a simulation on a console."""

    def __init__(self, console: Console, rounds: int, ratio: float, baseline: bool) -> None:
        """Prepare the progress bars.

        Args:
            console: where to print.
            rounds: rounds of each run.
            ratio: of the encrypted run.
            baseline: whether a run at ratio 0 follows.
        """
        self._console = console
        self._rounds = rounds
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        names = {"encrypted": f"ratio {ratio:g}", **({"baseline": "ratio 0"} if baseline else {})}
        self._tasks = {
            run: self._progress.add_task(
                label,
                total=rounds,
                start=False,
                note="waiting" if run == "baseline" else "starting Flower",
            )
            for run, label in names.items()
        }

    def __enter__(self) -> Self:
        self._progress.start()
        self._progress.start_task(self._tasks["encrypted"])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def show(self, run: str, report: PhaseReport) -> None:
        """Update the progress.

        Args:
            run: "encrypted" or "baseline".
            report: what just ended.
        """
        task = self._tasks[run]
        self._progress.start_task(task)
        accuracy = report.metrics.get("accuracy")
        if report.phase in NOTES:
            note = f"{report.clients} {NOTES[report.phase]} ({report.seconds:.1f} s)"
            self._progress.update(task, note=note)
        elif report.phase == "evaluate":
            note = "" if accuracy is None else f"accuracy {accuracy:.3f}"
            self._progress.update(task, completed=report.round, note=note)
        if report.phase == "evaluate" and report.round == self._rounds:
            self._progress.stop_task(task)
            if run == "encrypted" and "baseline" in self._tasks:
                self._progress.start_task(self._tasks["baseline"])
                self._progress.update(self._tasks["baseline"], note="starting Flower")

    def conclude(self, summary: SimulationSummary) -> None:
        """Print the tables.

        Args:
            summary: the simulation.
        """
        self._console.print(*tables(summary, summary.baseline))
        where = summary.folder.parent / "latest"
        if summary.model_sha256 is not None:
            self._console.print(
                f"The protected model was opened with a client's key; {summary.clients_agreeing} "
                f"clients hold the same model (sha256 {summary.model_sha256[:16]})."
            )
        self._console.print(
            f"Files: {where}/summary.json, curves.png, protected.safetensors (what the server "
            "has), model.safetensors (opened)",
            soft_wrap=True,
        )


def tables(summary: RunSummary, baseline: RunSummary | None = None) -> tuple[Table, Table]:
    """A run as tables.

    Args:
        summary: the run.
        baseline: the same run at ratio 0, to show beside it.

    Returns:
        A table of the rounds and one of the whole run.
    """
    return _rounds(summary, baseline), _comparison(summary, baseline)


def _rounds(summary: RunSummary, baseline: RunSummary | None) -> Table:
    table = Table(
        title=f"Rounds at ratio {summary.ratio:.3g}",
        caption="MB: plaintext + ciphertext of all clients. CPU ms: encrypt, add, decrypt.",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in ("", "accuracy", "at 0", "clients", "MB up", "MB down", "CPU ms", "wall s"):
        table.add_column(name, justify="right", no_wrap=True)
    others = baseline.accuracy if baseline else [None] * summary.rounds
    for row, other in zip(summary.per_round, others, strict=True):
        times = (row.encrypt_seconds, row.add_seconds, row.decrypt_seconds)
        table.add_row(
            str(row.round),
            _accuracy(row.accuracy),
            _accuracy(other),
            f"{row.clients}" + (f" (-{row.lost})" if row.lost else ""),
            f"{_short(row.bytes_up.plain / 1e6)} + {_short(row.bytes_up.encrypted / 1e6)}",
            f"{_short(row.bytes_down.plain / 1e6)} + {_short(row.bytes_down.encrypted / 1e6)}",
            " ".join(_short(1e3 * seconds, 1) for seconds in times),
            _short(row.seconds),
        )
    return table


def _comparison(summary: RunSummary, baseline: RunSummary | None) -> Table:
    table = Table(
        title="The whole run",
        caption="The first phase includes the start of the client processes.",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("")
    runs = [summary]
    table.add_column(f"ratio {summary.ratio:.3g}", justify="right")
    if baseline is not None:
        runs.append(baseline)
        table.add_column("ratio 0", justify="right")
        table.add_column("quotient", justify="right")
    share = f"{summary.encrypted_parameters:,} of {summary.parameters:,}"
    table.add_row("parameters encrypted", share, *(["0", ""] if len(runs) > 1 else []))
    finals = [run.accuracy[-1] for run in runs]
    table.add_row("final accuracy", *map(_accuracy, finals), *([""] if len(runs) > 1 else []))
    for name, values in (
        ("bytes up per round", [_per_round([r.bytes_up for r in run.per_round]) for run in runs]),
        (
            "bytes down per round",
            [_per_round([r.bytes_down for r in run.per_round]) for run in runs],
        ),
        ("bytes once: keys, map, mask", [_once(run) for run in runs]),
    ):
        table.add_row(name, *map(_megabytes, values), *_quotient(values))
    for phase in ("keys", "map", "mask", "train", "evaluate", "total"):
        seconds = [run.seconds.get(phase, 0.0) for run in runs]
        label = f"seconds, {phase}" + (" with start-up" if phase == "total" else "")
        table.add_row(label, *(f"{s:.2f}" for s in seconds), *_quotient(seconds))
    return table


def _once(run: RunSummary) -> float:
    everything = run.bytes_up.total + run.bytes_down.total
    return everything - sum(row.bytes_up.total + row.bytes_down.total for row in run.per_round)


def _per_round(rows: list[Bytes]) -> float:
    return sum(row.total for row in rows) / len(rows)


def _quotient(values: list[float]) -> list[str]:
    if len(values) < 2:
        return []
    return [f"{values[0] / values[1]:.2f}x" if values[1] else ""]


def _short(value: float, decimals: int = 2) -> str:
    """Four digits or so, for a narrow column."""
    return f"{value:.{decimals if value < 10 else 1 if value < 100 else 0}f}"


def _accuracy(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _megabytes(value: float) -> str:
    return f"{value / 1e6:.2f} MB"
