"""``python -m experiments.privacy.seeds``: studies of ``fedsens audit`` with several seeds as one.

A seed draws model, images and starts, so that the victims of all studies are a sample of both. It
prints the tables of README.md and docs/explanation/audit.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer

from fedsens._tables import make_table, to_markdown
from fedsens.audit import CONFIDENCE, Protection, Record, VerdictRow, read_settings, verdicts
from fedsens.errors import ConfigurationError

VARYING = ("seed", "weights", "imports")  # by what studies that are one may differ
UNION = "union"

Key = tuple[str, Protection]  # of a line: its case and protection
Leaks = dict[Key, dict[str, float]]  # name of a column to figure
Cells = tuple[Sequence[str], list[list[str]]]  # columns and rows of a table

app = typer.Typer(add_completion=False)


@app.command()
def main(
    folders: Annotated[list[Path], typer.Argument(help="Of studies that differ in their seed.")],
) -> None:
    """Print the verdict on all studies together, and that of each seed on the union."""
    pooled, each = together(folders)
    made = _by_protection if len({line.case for line in pooled}) == 1 else _by_case
    typer.echo(to_markdown(make_table(*made(pooled, each, leaks(folders)))))


def _by_protection(
    pooled: Sequence[VerdictRow], each: Sequence[Sequence[VerdictRow]], rest: Leaks
) -> Cells:
    """One row for each protection: every attack, their union, labels and membership."""
    scores = {(_key(line), line.attack): line for line in pooled}
    attacks = list(dict.fromkeys(line.attack for line in pooled if line.attack != UNION))
    shown = attacks if len(attacks) > 1 else []
    further = list(dict.fromkeys(name for names in rest.values() for name in names))
    rows = []
    for line in (line for line in pooled if line.attack == UNION):
        own = [scores.get((_key(line), attack)) for attack in shown]
        extra = rest.get(_key(line), {})
        rows.append([
            str(line.protection),
            *("-" if one is None else f"{one.score.mean:.2f}" for one in own),
            f"{line.score.mean:.3f} ({line.score.low:.3f}-{line.score.high:.3f})",
            *([_by_seed(line, each)] if len(each) > 1 else []),
            f"{line.identified:.0%} of {line.victims}",
            f"{line.possible:.0%}",
            *(f"{extra[name]:.2f}" if name in extra else "-" for name in further),
        ])  # fmt: skip
    measure = f"{'union' if shown else 'SSIM'}, {CONFIDENCE:.0%} interval"
    seeds = [f"of {len(each)} seeds"] if len(each) > 1 else []
    return ("encrypted", *shown, measure, *seeds, "found", "at most", *further), rows


def _by_case(
    pooled: Sequence[VerdictRow], each: Sequence[Sequence[VerdictRow]], rest: Leaks
) -> Cells:
    """One row for each update: the union with nothing encrypted, and under each mask."""
    unions = {_key(line): line for line in pooled if line.attack == UNION}
    masks = [p for p in dict.fromkeys(mask for _, mask in unions) if p.ratio < 1]
    rows = []
    for case in dict.fromkeys(case for case, _ in unions):
        cells = [case]
        for line in (unions.get((case, mask)) for mask in masks):
            seeds = f"{line.score.mean:.2f} ({_by_seed(line, each)})" if line else "-"
            cells += [seeds, f"{line.identified:.0%}" if line else "-"]
        rows.append(cells)
    return ("update", *(c for mask in masks for c in (f"SSIM, {mask} encrypted", "found"))), rows


def _by_seed(line: VerdictRow, each: Sequence[Sequence[VerdictRow]]) -> str:
    """The union's mean of each seed."""
    own = (
        next(one for one in some if _key(one) == _key(line) and one.attack == UNION)
        for some in each
    )
    return ", ".join(f"{one.score.mean:.2f}" for one in own)


def together(folders: Sequence[Path]) -> tuple[list[VerdictRow], list[list[VerdictRow]]]:
    """The verdict on the victims of all studies, and that on each study's.

    Args:
        folders: of studies whose settings differ in the seed only.

    Returns:
        The lines of the pool, in which the first victims are those of every study in turn, and the
        lines of each study.

    Raises:
        ConfigurationError: the settings differ, or there is no study.
    """
    common: dict[str, Any] = {}
    pool, each, many = [], [], len(folders)
    guesses: dict[str, dict[int, float]] = {}
    for number, folder in enumerate(folders):
        settings = _settings(folder)
        shared = {name: value for name, value in settings.items() if name not in VARYING}
        common = common or shared
        if shared != common:
            odd = sorted(name for name in shared if shared[name] != common.get(name))
            raise ConfigurationError(
                f"expected studies that differ in their seed, got other {', '.join(odd)} in "
                f"{folder}; leave it out"
            )
        priors: dict[str, list[float]] = _summary(folder)["prior"]
        outcomes = [outcome for outcome, _ in Record(folder, settings).known.values()]
        each.append(verdicts(outcomes, priors))
        for outcome in outcomes:
            place = outcome.trial.image * many + number
            pool.append(replace(outcome, trial=replace(outcome.trial, image=place)))
        for case, prior in priors.items():
            own = {image * many + number: score for image, score in enumerate(prior)}
            guesses.setdefault(case, {}).update(own)
    ordered = {case: [own[place] for place in sorted(own)] for case, own in guesses.items()}
    return verdicts(pool, ordered), each


def leaks(folders: Iterable[Path]) -> Leaks:
    """Errors of label histograms and areas of membership, the mean over studies.

    Args:
        folders: of the studies.

    Returns:
        Of the first case's protections, name of the column to figure.
    """
    found: dict[Key, dict[str, list[float]]] = {}
    for folder in folders:
        summary = _summary(folder)
        case = next(iter(summary["prior"]))
        figures = [("label error", row, row["error"]) for row in summary["labels"]]
        figures += [(f"AUC {row['batch']}", row, row["auc"]) for row in summary["membership"]]
        for name, row, interval in figures:
            key = case, Protection(row["policy"], row["ratio"], row["remainder"])
            found.setdefault(key, {}).setdefault(name, []).append(interval["mean"])
    return {key: {n: mean(values) for n, values in own.items()} for key, own in found.items()}


def _key(line: VerdictRow) -> Key:
    return line.case, line.protection


def _summary(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "audit.json").read_text())
    return content


def _settings(folder: Path) -> Mapping[str, Any]:
    settings = read_settings(folder)
    if settings is None:
        raise ConfigurationError(f"expected a study in {folder}, got none; audit into it first")
    return settings


if __name__ == "__main__":
    app()
