"""Runs fedsens's search for a client that spoils sums many times, without models."""

from __future__ import annotations

import itertools
import logging
import random
import statistics
from pathlib import Path
from typing import Annotated

import typer

from fedsens.flower._blame import Blame
from fedsens.flower._groups import split

PAGE = Path(__file__).parents[2] / "docs/how-to/faults.md"
BEGIN, END = "<!-- blame -->", "<!-- end of blame -->"
# Clients, groups, and updates that each group needs.
ALONE = ((4, 1, 3), (5, 1, 3), (10, 1, 3), (100, 1, 3))
GROUPED = ((4, 2, 2), (9, 3, 3), (9, 3, 2), (12, 3, 3), (12, 4, 3), (12, 4, 2))
SHARES = (1.0, 0.3)
LONGEST = 2000  # rounds of one search
HEADS = (
    "clients",
    "groups",
    "needed of each",
    "spoils",
    "refused sums",
    "rounds to the name",
    "named wrongly",
)


def search(count: int, groups: int, least: int, share: float, seed: int) -> tuple[int, int, bool]:
    """One search for one client among some.

    Args:
        count: how many there are.
        groups: that are summed apart; drawn anew in each round.
        least: updates that each of them needs.
        share: of the rounds in which it takes part and spoils the sum.
        seed: of cohorts and behaviour.

    Returns:
        Rounds until somebody is named, refused sums among them, and whether it is the right one.
    """
    names = [f"{number:03d}" for number in range(count)]
    chance = random.Random(seed)
    culprit = chance.choice(names)
    blame = Blame(least * groups, seed)
    for rounds in range(1, LONGEST):
        cohort = sorted(set(names) - blame.leave_out(names))
        spoils = chance.random() < share
        for group in split(cohort, groups, least, (seed, rounds)):
            (blame.refuse if spoils and culprit in group else blame.accept)(group)
        if blame.excluded:
            return rounds, len(blame.refused), blame.excluded == {culprit}
    return LONGEST, len(blame.refused), False


def table(runs: int) -> str:
    """The figures as Markdown.

    Args:
        runs: for each line.

    Returns:
        The table.
    """
    lines: list[tuple[str, ...]] = [HEADS, tuple("---" for _ in HEADS)]
    for case, share in itertools.product((*ALONE, *GROUPED), SHARES):
        found = [search(*case, share, seed) for seed in range(runs)]
        rounds, refused = ([each[i] for each in found] for i in (0, 1))
        figures = (f"{statistics.median(each):g} ({max(each)})" for each in (refused, rounds))
        wrong = sum(not right for *_, right in found)
        lines.append((*map(str, case), f"{share:.0%}", *figures, f"{wrong} of {runs}"))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(runs: Annotated[int, typer.Option(min=1, help="Searches for each line.")] = 2000) -> None:
    """Print the table, and write it into docs/how-to/faults.md."""
    made = table(runs)
    typer.echo(made)
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{made}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    typer.run(main)
