"""A verdict as tables on the screen, and what a study found as files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import mean
from typing import Any

from rich import box
from rich.table import Table

from fedsens.audit._membership import LabelLeak, MembershipResult
from fedsens.audit._metrics import Interval
from fedsens.audit._recommend import Choice, cost_rank
from fedsens.audit._trial import PLAIN, Protection
from fedsens.audit._verdict import UNION, VerdictRow

MEASURES = {"images": "SSIM", "tokens": "F1"}  # of what is recovered


def audit_table(
    lines: Sequence[VerdictRow],
    prior: Sequence[float],
    kind: str,
    candidates: int,
    mode: str = "",
) -> Table:
    """One line for each protection and attack of a case.

    Args:
        lines: of the verdict.
        prior: score of each victim's guess without any update.
        kind: of the samples.
        candidates: how many samples a victim is told from.
        mode: in which the model is attacked, in words.

    Returns:
        The table.
    """
    measure = MEASURES[kind]
    table = _table(
        f"What a curious server recovers from {lines[0].case}" + (f", in {mode}" if mode else ""),
        f"{measure}: 1 is all of it; a guess without any update has {mean(prior):.3f}. found: "
        f"share of the victims told from {candidates} others. union: for each victim the best of "
        "all but naive attacks. In brackets: naive, or too weak with nothing encrypted, so that "
        "its failure says nothing. A victim that one attack has recovered is not attacked further.",
    )
    varied = any(line.remainder != PLAIN for line in lines)
    for name in ("policy", "attack"):
        table.add_column(name, no_wrap=True)
    right = ("ratio", *(["remainder"] if varied else []), "victims", measure, "95 %", "found")
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        union = line.attack == UNION
        table.add_row(
            line.policy,
            line.attack if line.works and line.threat != "naive" else f"({line.attack})",
            f"{line.ratio:g}",
            *([line.remainder] if varied else []),
            str(line.victims),
            f"{line.score.mean:.3f}",
            f"{line.score.low:.3f}-{line.score.high:.3f}" if line.victims > 1 else "one victim",
            f"{line.identified:.0%}",
            style="bold" if union else None,
            end_section=union,
        )
    return table


def case_table(
    lines: Sequence[VerdictRow],
    priors: Mapping[str, Sequence[float]],
    accuracy: Mapping[str, float],
    candidates: int,
) -> Table:
    """The strongest attack in every case: the worst one first, then what is really sent.

    Args:
        lines: of the verdict on all cases.
        priors: case to the score of each victim's guess.
        accuracy: case to that of its model.
        candidates: how many samples a victim is told from.

    Returns:
        The table.
    """
    table = _table(
        "The worst case, and what federated learning really sends",
        "excess: of the strongest attack over a guess without any update, with its 95 % interval; "
        f"found: share of the victims' samples told from {candidates} others. In brackets: no "
        "attack works there with nothing encrypted, so that it says nothing about a mask.",
    )
    table.add_column("update")
    table.add_column("encrypted", no_wrap=True)
    for name in ("accuracy", "updates", "guess", "strongest", "excess", "found"):
        table.add_column(name, justify="right", no_wrap=True)
    for case, prior in priors.items():
        unions = [line for line in lines if line.case == case and line.attack == UNION]
        for line in sorted(unions, key=lambda line: cost_rank(line.protection)):
            score = f"{line.score.mean:.3f}"
            table.add_row(
                case,
                str(line.protection),
                f"{accuracy[case]:.0%}",
                str(line.victims),
                f"{mean(prior):.3f}",
                score if line.works else f"({score})",
                _span(line.excess, line.victims),
                f"{line.identified:.0%}",
            )
    return table


def inference_table(labels: Sequence[LabelLeak], membership: Sequence[MembershipResult]) -> Table:
    """What leaks besides samples: labels, and who was there.

    Args:
        labels: how well they are inferred.
        membership: how well members of a batch are told from others.

    Returns:
        The table, one line for each protection.
    """
    batches = sorted({each.batch for each in membership})
    areas_by_key = {
        (Protection(each.policy, each.ratio, each.remainder), each.batch): each.auc
        for each in membership
    }
    table = _table(
        "Labels and membership",
        "label error: total-variation distance of the inferred label histogram from the truth, "
        "beside that of a uniform guess; right: share of labels named. AUC: how well samples "
        "of a batch of so many are told from others by its gradient; 0.5 is a coin's.",
    )
    table.add_column("protection", no_wrap=True)
    for name in ("label error", "guess", "right", *(f"AUC {b}" for b in batches)):
        table.add_column(name, justify="right", no_wrap=True)
    for each in labels:
        key = Protection(each.policy, each.ratio, each.remainder)
        areas = [areas_by_key.get((key, batch)) for batch in batches]
        table.add_row(
            str(key),
            f"{each.error.mean:.3f}",
            f"{each.uniform:.3f}",
            f"{each.accuracy:.0%}",
            *("-" if area is None else f"{area.mean:.3f}" for area in areas),
        )
    return table


def choice_table(
    found: Sequence[Choice],
    seconds: Mapping[Protection, float],
    size: int,
    kind: str,
    confidence: float,
    margin: float,
) -> Table:
    """Every protection of a study, from cheap to dear.

    Args:
        found: the choices.
        seconds: of CPU time of a client's round for each protection, where it is known.
        size: P, of the model.
        kind: of the samples.
        confidence: of the intervals.
        margin: of the score that counts as noise.

    Returns:
        The table.
    """
    table = _table(
        f"What {size:,} parameters leak to the strongest attack, from cheap to dear",
        f"MB (both ways), CPU s: of a client in a round, without training. excess: "
        f"{MEASURES[kind]} above a guess, interval of {confidence:.1%}; it holds up to {margin:g}. "
        f"found: share of victims told from others, in brackets what it may be of all "
        f"at {confidence:.1%}; a walk leaves a protection at its first victim that is told.",
    )
    table.add_column("protection")  # wraps where the terminal is narrow: numbers must not be cut
    for name in ("MB", *(["CPU s"] if seconds else []), "excess", "found", ""):
        table.add_column(name, justify="right", no_wrap=True, min_width=5)
    for each in found:
        line = each.line
        table.add_row(
            str(each.protection),
            f"{(each.bytes_up + each.bytes_down) / 1e6:.3g}",
            *([f"{seconds[each.protection]:.2g}"] if seconds else []),
            _span(line.excess, line.victims),
            f"{line.identified:.0%} ({line.certain:.0%}-{line.possible:.0%})",
            each.answer,
            style="bold" if each.answer == "holds" else None,
        )
    return table


def _span(interval: Interval, victims: int) -> str:
    """An interval, or the value itself where one victim makes none."""
    if victims == 1:
        return f"{interval.mean:+.2f}"
    return f"{interval.low:+.2f} to {interval.high:+.2f}"


def _table(title: str, caption: str) -> Table:
    return Table(title=title, caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))


@dataclass(frozen=True)
class Summary:
    """What a study found.

    Attributes:
        settings: of the study.
        parameters: P, of the model.
        kind: of the samples.
        mode: in which the model was attacked, in words.
        prior: case to the score of each victim's guess without any update.
        accuracy: case to that of the model that its updates are of.
        untried: trials that the time budget left over.
        lines: of the verdict.
        labels: how well they are inferred.
        membership: how well members are told; empty where that was not tried.
    """

    settings: Mapping[str, Any]
    parameters: int
    kind: str
    mode: str
    prior: Mapping[str, Sequence[float]]
    accuracy: Mapping[str, float]
    untried: int
    lines: Sequence[VerdictRow]
    labels: Sequence[LabelLeak]
    membership: Sequence[MembershipResult]


def write_summary(summary: Summary, folder: Path) -> None:
    """Write the files.

    Args:
        summary: of the study.
        folder: an existing one.
    """
    (folder / "audit.json").write_text(json.dumps(asdict(summary), indent=1) + "\n")
    _write_rows(folder / "audit.csv", summary.lines)
    _write_rows(folder / "labels.csv", summary.labels)
    _write_rows(folder / "membership.csv", summary.membership)


def _write_rows(path: Path, rows: Iterable[VerdictRow | LabelLeak | MembershipResult]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        for index, row in enumerate(rows):
            cells = dict(_cells(row))
            if index == 0:
                writer.writerow(cells)
            writer.writerow(cells.values())


def _cells(row: VerdictRow | LabelLeak | MembershipResult) -> list[tuple[str, Any]]:
    """An interval becomes three columns: its mean under the field's own name."""
    cells: list[tuple[str, Any]] = []
    for field in fields(row):
        value = getattr(row, field.name)
        if isinstance(value, Interval):
            spread = {"": value.mean, "_low": value.low, "_high": value.high}
            cells += [(f"{field.name}{end}", f"{one:.4f}") for end, one in spread.items()]
        elif isinstance(value, float) and field.name != "ratio":
            cells.append((field.name, f"{value:.4f}"))
        else:
            cells.append((field.name, value))
    return cells
