"""``python -m experiments.privacy.seeds``: studies of ``fedsens audit`` with several seeds as one.

A seed draws model, images and starts, so that the victims of all studies are a sample of both. It
prints the tables of README.md and docs/explanation/audit.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from fedsens.audit import CONFIDENCE, Line, Record, read_settings, verdict
from fedsens.errors import ConfigurationError
from fedsens.tables import make_table, to_markdown

VARYING = ("seed", "weights", "imports")  # by what studies that are one may differ
UNION = "union"

app = typer.Typer(add_completion=False)


@app.command()
def main(
    folders: Annotated[list[Path], typer.Argument(help="Of studies that differ in their seed.")],
) -> None:
    """Print the verdict on all studies together, and that of each seed on the union."""
    pooled, each = together(folders)
    unions = [{line.protection: line for line in own if line.attack == UNION} for own in each]
    attacks = list(dict.fromkeys(line.attack for line in pooled if line.attack != UNION))
    scores = {(line.protection, line.attack): line for line in pooled}
    rows = []
    for line in (line for line in pooled if line.attack == UNION):
        own = [scores.get((line.protection, attack)) for attack in attacks]
        low, high = line.score.low, line.score.high
        rows.append([
            str(line.protection),
            *("-" if one is None else f"{one.score.mean:.2f}" for one in own),
            f"**{line.score.mean:.3f}** ({low:.3f}-{high:.3f})",
            ", ".join(f"{some[line.protection].score.mean:.3f}" for some in unions),
            f"{line.identified:.0%}",
            f"{line.possible:.0%}",
            str(line.victims),
        ])  # fmt: skip
    seeds = f"of {len(folders)} seeds"
    columns = ("encrypted", *attacks, f"union, {CONFIDENCE:.0%}", seeds, "found", "at most", "of")
    typer.echo(to_markdown(make_table(columns, rows)))


def together(folders: Sequence[Path]) -> tuple[list[Line], list[list[Line]]]:
    """The verdict on the victims of all studies, and that on each study's.

    Args:
        folders: of studies whose settings differ in the seed only; their first case counts.

    Returns:
        The lines of the pool, in which the first victims are those of every study in turn, and the
        lines of each study.

    Raises:
        ConfigurationError: the settings differ.
    """
    common: dict[str, Any] = {}
    pool, each = [], []
    guesses: dict[int, float] = {}
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
        priors: dict[str, list[float]] = json.loads((folder / "audit.json").read_text())["prior"]
        case, prior = next(iter(priors.items()))
        outcomes = [o for o, _ in Record(folder, settings).known.values() if o.trial.case == case]
        each.append(verdict(outcomes, prior))
        for outcome in outcomes:
            place = outcome.trial.image * len(folders) + number
            pool.append(replace(outcome, trial=replace(outcome.trial, image=place)))
        guesses |= {image * len(folders) + number: score for image, score in enumerate(prior)}
    return verdict(pool, [guesses[place] for place in sorted(guesses)]), each


def _settings(folder: Path) -> Mapping[str, Any]:
    settings = read_settings(folder)
    if settings is None:
        raise ConfigurationError(f"expected a study in {folder}, got none; audit into it first")
    return settings


if __name__ == "__main__":
    app()
