"""``python -m experiments.soak``: hundreds of rounds with clients that drop out, fail and lie."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from experiments.cases import Case, Fresh, OutFolder, Row, measure_cases, rows_of, show
from experiments.soak.figure import draw
from experiments.soak.run import Plan, soak
from experiments.soak.summary import left_out, lines, worst
from fedsens.errors import BenchmarkError

RESULTS = Path(__file__).parent / "results"
ALL, SAMPLED = "everybody, every round", "a tenth, every round"

app = typer.Typer(add_completion=False)


@app.command()
def main(
    out: OutFolder = RESULTS,
    rounds: Annotated[int, typer.Option(min=2, help="With all clients.")] = 500,
    clients: Annotated[int, typer.Option(min=3, help="All of them in every round.")] = 8,
    many_rounds: Annotated[int, typer.Option(min=2, help="With a tenth of many clients.")] = 50,
    many_clients: Annotated[int, typer.Option(min=40, help="A tenth in every round.")] = 200,
    seed: Annotated[int, typer.Option(help="Of what goes wrong.")] = 0,
    spoils: Annotated[bool, typer.Option(help="One of all clients spoils sums.")] = True,
    fresh: Fresh = False,
) -> None:
    """Run rounds in which a tenth of the clients misbehave, and check every one of them."""
    plans = {
        ALL: Plan(clients, rounds, seed=seed, spoils=spoils),
        SAMPLED: Plan(
            many_clients,
            many_rounds,
            fraction=0.1,
            first=many_clients // 2,
            joining=max(1, many_clients // 50),
            seed=seed,
            refresh_every=10,
        ),
    }
    cases: list[Case] = [
        {"soak": name, "clients": plan.clients, "rounds": plan.rounds, "seed": seed}
        for name, plan in plans.items()
    ]

    def measure(case: Case) -> Iterable[Row]:
        return soak(plans[str(case["soak"])])

    rows = measure_cases(cases, measure, "soak", out, fresh)
    runs = {f"{c['clients']} clients, {c['soak']}": rows_of(rows, c) for c in cases}
    draw(runs, out / "soak.png")
    parts = [lines(name, own) for name, own in runs.items()]
    told = ([line[0][0], *(each[1] for each in line)] for line in zip(*parts, strict=True))
    show("Soak", ("", *("" for _ in parts)), told, "10 % of the clients misbehave in every round")
    reasons = left_out(rows)
    show("Left out", ("", "times"), ([name, str(n)] for name, n in reasons.items()), "both soaks")
    if worst(rows) > 1:
        raise BenchmarkError(f"expected errors within their bounds, got {worst(rows):.2f} of one")


if __name__ == "__main__":
    app()
