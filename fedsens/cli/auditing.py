"""What ``fedsens audit`` does once its study is laid out: progress, verdict, files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fedsens.audit.figure import draw_leakage, draw_sheet
from fedsens.audit.histogram import label_leaks
from fedsens.audit.membership import membership
from fedsens.audit.metrics import interval
from fedsens.audit.record import Record
from fedsens.audit.running import run_trials
from fedsens.audit.screen import audit_table, conclusion, rest_table
from fedsens.audit.study import Study
from fedsens.audit.summary import Summary, write_summary
from fedsens.audit.trial import Protection, Trial, trials_of
from fedsens.audit.verdict import verdict
from fedsens.cli.common import console
from fedsens.crypto import CkksParameters
from fedsens.protocol import traffic


def try_all(
    study: Study,
    record: Record,
    protections: Sequence[Protection],
    attacks: Sequence[str],
    minutes: float,
) -> list[Trial]:
    """Run the trials that the record does not have, with a bar and an estimate of the time left.

    Args:
        study: the study.
        record: what is known already; outcomes are added.
        protections: to attack.
        attacks: names.
        minutes: after which none is begun; 0 for all.

    Returns:
        All trials of the study, whether they have been tried or not.
    """
    trials = trials_of(protections, attacks, len(study.victims) // study.case.images)
    new = [trial for trial in trials if trial not in record.known]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("attacks", total=len(trials), completed=len(trials) - len(new))
        for outcome in run_trials(study, new, record.add, minutes):
            name = f"{outcome.trial.protection} {outcome.trial.attack}"
            progress.update(task, description=name)
            progress.advance(task)
    return trials


def conclude(
    study: Study, record: Record, trials: Sequence[Trial], out: Path, presence: bool
) -> None:
    """Say and write what the study found.

    Args:
        study: the study.
        record: its outcomes.
        trials: of the study.
        out: its folder.
        presence: whether to tell members of a batch, too.
    """
    tried = [trial for trial in trials if trial in record.known]
    prior, case = study.prior(), str(study.case)
    lines = verdict((record.known[trial][0] for trial in tried), prior)
    protections = list(dict.fromkeys(trial.protection for trial in tried))
    with console.status("labels and presence"):
        labels = label_leaks(study, protections, len(prior))
        told = membership(study, protections) if presence else []
    size, untried = study.layout.size, len(trials) - len(tried)
    summary = Summary(record.settings, size, prior, untried, lines, labels, told)
    write_summary(summary, out)
    codec = CkksParameters.preset("compact")
    ratios = {line.ratio for line in lines}
    megabytes = {r: sum(traffic(codec, size, round(r * size))) / 1e6 for r in ratios}
    draw_leakage(lines, interval(prior), megabytes, out / "leakage.png")
    draw_sheet(lines, record.known, study.victims.x[:: study.case.images], out / "sheet.png")
    console.print(audit_table(lines, interval(prior), case))
    console.print(rest_table(labels, told))
    console.print(conclusion(lines, case))
    if untried:
        console.print(_left_over(trials, record), soft_wrap=True)
    console.print(
        f"audit.json, audit.csv, leakage.png, sheet.png and more in {out}", soft_wrap=True
    )


def _left_over(trials: Sequence[Trial], record: Record) -> str:
    left = [trial for trial in trials if trial not in record.known]
    names = list(dict.fromkeys(str(trial.protection) for trial in left))
    victims = min(trial.image for trial in left)
    return (
        f"The time budget left {len(left)} of {len(trials)} trials untried ({', '.join(names)}); "
        f"{victims} victims are complete. The same command again goes on with the rest."
    )
