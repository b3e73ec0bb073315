"""``python -m experiments.staleness``: what an old mask misses, round by round."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from experiments.cases import Case, Fresh, OutFolder, Row, measure_cases, show
from experiments.federation import Clients, DataSource, ModelName, Rounds, Value, train_federation
from experiments.staleness.figure import draw
from fedsens.flower import SelectiveEncryption
from fedsens.mask import EncryptionMask
from fedsens.protocol import PhaseReport

RESULTS = Path(__file__).parent / "results"
RULES = ("vector", "true_label")

app = typer.Typer(add_completion=False)


@app.command()
def main(
    out: OutFolder = RESULTS,
    data: DataSource = "digits",
    model: ModelName = "digits-cnn",
    rounds: Rounds = 15,
    clients: Clients = 8,
    ratio: Annotated[float, typer.Option(min=0, max=1, help="Share in the mask.")] = 0.1,
    fresh: Fresh = False,
) -> None:
    """Make a new mask before every round and compare it with the older ones."""
    common: Case = {"data": Path(data).stem, "model": model, "clients": clients, "ratio": ratio}
    cases = [common | {"rounds": rounds, "rule": rule} for rule in RULES]
    rows = measure_cases(cases, lambda case: _train(case, data), "staleness", out, fresh)
    draw(rows, ratio, out / "staleness.png")
    show(
        f"Staleness of a mask of {ratio:.0%}: {model} on {common['data']}, {clients} clients",
        ("in round", *map(str, _shown(rounds))),
        (line for rule in RULES for line in _lines(rows, rule, rounds)),
        "staleness: 1 - intersection over union with the mask that the round's own maps give",
    )


def _train(case: Case, data: str) -> Iterable[Row]:
    masks: list[EncryptionMask] = []
    rows: list[Row] = []

    def seen(strategy: SelectiveEncryption, report: PhaseReport) -> None:
        if report.phase == "train":
            masks.append(strategy.model.mask)
        if report.phase == "evaluate":
            stale = {
                "since first": 1 - masks[0].overlap(masks[-1]),
                "since last": 1 - masks[max(0, len(masks) - 2)].overlap(masks[-1]),
            }
            rows.append({"round": report.round, "accuracy": report.metrics["accuracy"]} | stale)

    options: dict[str, Value] = {
        "data": data,
        "model": str(case["model"]),
        "local-epochs": 1,
        "fedsens.ratio": case["ratio"],
        "fedsens.rule": str(case["rule"]),
        "fedsens.refresh-every": 1,
        "fedsens.moving-masks": True,
    }
    train_federation(int(case["clients"]), int(case["rounds"]), options, seen)
    return rows


def _shown(rounds: int) -> list[int]:
    return [number for number in (1, 2, 3, 5, 10, 15, 20, 30) if number <= rounds]


def _lines(rows: list[Row], rule: str, rounds: int) -> Iterable[list[str]]:
    for name, title in (("since first", "mask of round 1"), ("since last", "the one before")):
        curve = {row["round"]: row[name] for row in rows if row["rule"] == rule}
        yield [f"{rule}, {title}", *(f"{curve[number]:.2f}" for number in _shown(rounds))]


if __name__ == "__main__":
    app()
