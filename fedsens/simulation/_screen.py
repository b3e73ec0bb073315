"""What a person sees of a simulation: live progress, then tables."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fedsens._tables import make_table
from fedsens.protocol import PhaseReport
from fedsens.simulation._summary import (
    Bytes,
    RoundSummary,
    RunSummary,
    SimulationSummary,
    choose_metric,
)

NOTES = {
    "keys": "clients hold the key",
    "map": "sensitivity maps added under encryption",
    "mask": "key holder opened the aggregate and returned the mask",
}
WIDE = 8  # characters of a column's name


class SimulationScreen:
    """Shows a simulation on a console."""

    def __init__(
        self,
        console: Console,
        rounds: int | None,
        ratio: float | None,
        baseline: bool,
        metric: str | None = None,
    ) -> None:
        """Prepare the progress bars.

        Args:
            console: where to print.
            rounds: rounds of each run; None if the app alone knows.
            ratio: of the encrypted run, likewise.
            baseline: whether a run at ratio 0 follows.
            metric: what to show of each round, see
                :func:`~fedsens.simulation._summary.choose_metric`.
        """
        self._console = console
        self._rounds, self._metric = rounds, metric
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        label = "this run" if ratio is None else f"ratio {ratio:g}"
        names = {"encrypted": label, **({"baseline": "ratio 0"} if baseline else {})}
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
        self.stop()

    def stop(self) -> None:
        """End the live display."""
        self._progress.stop()

    def show(self, run: str, report: PhaseReport) -> None:
        """Update the progress of the run "encrypted" or "baseline" by what just ended."""
        task = self._tasks[run]
        self._progress.start_task(task)
        if report.phase in NOTES:
            note = f"{report.clients} {NOTES[report.phase]} ({report.seconds:.1f} s)"
            self._progress.update(task, note=note)
        elif report.phase in ("train", "evaluate"):
            shown = choose_metric(report.metrics, self._metric)
            note = "" if shown is None else f"{shown} {report.metrics[shown]:.3f}"
            self._progress.update(task, completed=report.round, note=note)
        if report.phase == "evaluate" and report.round == self._rounds:
            self._progress.stop_task(task)
            if run == "encrypted" and "baseline" in self._tasks:
                self._progress.start_task(self._tasks["baseline"])
                self._progress.update(self._tasks["baseline"], note="starting Flower")

    def conclude(self, summary: SimulationSummary, where: Path) -> None:
        """Print the tables, and the folder as the user knows it."""
        self._console.print(*tables(summary, summary.baseline))
        for warning in summary.warnings:
            self._console.print(f"Warning: {warning}", soft_wrap=True, markup=False)
        if summary.model_sha256 is not None:
            self._console.print(
                "The protected model was opened with a client's key, and is what all "
                f"{summary.clients_agreeing} clients that evaluated it have opened "
                f"(sha256 {summary.model_sha256[:16]})."
            )
        if summary.metric is None:
            names = dict.fromkeys(name for row in summary.per_round for name in row.metrics)
            self._console.print(
                f"No metric to compare; the app reports: {', '.join(names) or 'none'}."
            )
        self._console.print(
            f"Files: {where}/summary.json, curves.png, protected.safetensors (what the server "
            "has), model.safetensors (opened)",
            soft_wrap=True,
        )
        if summary.opens == "clients":
            self._console.print(
                "Where the app saves result.arrays, these are no model: they have NaN at the "
                f"{summary.encrypted_parameters:,} encrypted parameters. Use model.safetensors.",
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
    others = baseline.scores if baseline else []
    return make_table(
        (
            "",
            _folded(summary.metric or "metric"),
            "at 0",
            "clients",
            "MB up",
            "MB down",
            "CPU ms",
            "wall s",
        ),
        [
            _round(row, other)
            for row, other in zip_longest(summary.per_round, others[: summary.rounds])
        ],
        title=f"Rounds at ratio {summary.ratio:.3g}",
        caption="MB: plaintext + ciphertext of all clients. CPU ms: encrypt, add, decrypt.",
        left=(),
    )


def _folded(metric: str) -> str:
    """A name that leaves the figures beside it their room in a terminal of 80 columns."""
    return metric if len(metric) <= WIDE else metric.replace("_", "_\n").replace("-", "-\n")


def _round(row: RoundSummary, other: float | None) -> tuple[str, ...]:
    times = (row.encrypt_seconds, row.add_seconds, row.decrypt_seconds)
    return (
        str(row.round),
        _score(row.score),
        _score(other),
        f"{row.clients}" + (f" (-{row.lost})" if row.lost else ""),
        f"{_short(row.bytes_up.plain / 1e6)} + {_short(row.bytes_up.encrypted / 1e6)}",
        f"{_short(row.bytes_down.plain / 1e6)} + {_short(row.bytes_down.encrypted / 1e6)}",
        " ".join(_short(1e3 * seconds, 1) for seconds in times),
        _short(row.seconds),
    )


def _comparison(summary: RunSummary, baseline: RunSummary | None) -> Table:
    runs = [summary] if baseline is None else [summary, baseline]
    alone = baseline is None
    share = f"{summary.encrypted_parameters:,} of {summary.parameters:,}"
    figures = {
        "bytes up per round": [_per_round([r.bytes_up for r in run.per_round]) for run in runs],
        "bytes down per round": [_per_round([r.bytes_down for r in run.per_round]) for run in runs],
        "bytes once: keys, map, mask": [_once(run) for run in runs],
    }
    rows = [
        ["parameters encrypted", share, *([] if alone else ["0", ""])],
        [
            "sums opened by",
            f"the {summary.opens}" if summary.opens else "-",
            *([] if alone else ["-", ""]),
        ],
        [f"final {summary.metric or 'metric'}", *_finals(runs), *([] if alone else [""])],
        *([name, *map(_megabytes, each), *_quotient(each)] for name, each in figures.items()),
    ]
    for phase in ("keys", "map", "mask", "train", "evaluate", "total"):
        seconds = [run.seconds.get(phase, 0.0) for run in runs]
        label = f"seconds, {phase}" + (" with start-up" if phase == "total" else "")
        starting = any(phase == next(iter(run.seconds), None) for run in runs)
        quotient = ["" for _ in _quotient(seconds)] if starting else _quotient(seconds)
        rows.append([label, *(f"{s:.2f}" for s in seconds), *quotient])
    return make_table(
        ("", f"ratio {summary.ratio:.3g}", *([] if alone else ["ratio 0", "quotient"])),
        rows,
        title="The whole run",
        caption="The first phase includes the start of the client processes.",
    )


def _finals(runs: Iterable[RunSummary]) -> Iterable[str]:
    return (_score(run.scores[-1]) if run.scores else "-" for run in runs)


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


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _megabytes(value: float) -> str:
    return f"{value / 1e6:.2f} MB"
