"""``python -m experiments.models``: what a round costs by model, as in FedML-HE's Table 4."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from experiments.cases import Case, Fresh, OutFolder, Row, measure_cases, show
from experiments.models.figure import draw
from experiments.models.shapes import MODELS, random_state, size_of
from fedsens.bench._round import measure_round, measuring_rounds

RESULTS = Path(__file__).parent / "results"
CLIENTS = 3  # as in the paper
RATIOS = (None, 0.1, 1.0)


class Paper(NamedTuple):
    """A line of FedML-HE's Table 4 (arXiv 2303.10837), with every parameter encrypted.

    Attributes:
        parameters: of the paper's model.
        time: HE time relative to plaintext aggregation.
        size: ciphertext relative to plaintext.
    """

    parameters: int
    time: float
    size: float


PAPER = {
    "Linear": Paper(101, 150.85, 240.83),
    "LeNet": Paper(88_648, 57.95, 17.50),
    "CNN": Paper(1_663_370, 42.23, 16.66),
    "ResNet-18": Paper(12_556_426, 18.14, 16.61),
    "ResNet-50": Paper(25_557_032, 8.68, 16.58),
    "ViT-Base": Paper(86_389_248, 6.34, 16.62),
    "BERT-Base": Paper(109_482_240, 6.96, 16.62),
}

app = typer.Typer(add_completion=False)


@app.command()
def main(
    out: OutFolder = RESULTS,
    models: Annotated[
        list[str] | None, typer.Option("--model", help="Repeatable; default: all.")
    ] = None,
    fresh: Fresh = False,
) -> None:
    """Measure a round of each model, in plaintext and encrypted, beside the paper's columns."""
    cases: list[Case] = [{"model": name} for name in models or MODELS]
    if unknown := [case["model"] for case in cases if case["model"] not in MODELS]:
        raise typer.BadParameter(f"expected models out of {', '.join(MODELS)}, got {unknown}")
    rows = measure_cases(cases, _measure, "models", out, fresh)
    draw(rows, out / "models.png")
    show(
        f"A round of {CLIENTS} clients relative to plain Flower FedAvg, without training",
        ("model", "P", "time 0.1", "time 1", "paper", "up 1", "down 1", "paper"),
        (_line(row) for row in rows),
        "time: CPU of server and clients. up, down: bytes. paper: FedML-HE, Table 4, all encrypted",
    )


def _measure(case: Case) -> Iterable[Row]:
    name = str(case["model"])
    with measuring_rounds():
        state = random_state(name)
        plain, tenth, whole = (
            measure_round(name, ratio, state, CLIENTS, repeats=1, preset="precise")
            for ratio in RATIOS
        )
    yield {
        "parameters": size_of(name),
        "plain seconds": plain.seconds,
        "time at 0.1": tenth.seconds / plain.seconds,
        "time at 1": whole.seconds / plain.seconds,
        "up at 0.1": tenth.bytes_up / plain.bytes_up,
        "down at 0.1": tenth.bytes_down / plain.bytes_down,
        "up at 1": whole.bytes_up / plain.bytes_up,
        "down at 1": whole.bytes_down / plain.bytes_down,
        "paper's parameters": PAPER[name].parameters,
        "paper's time at 1": PAPER[name].time,
        "paper's size at 1": PAPER[name].size,
    }


def _line(row: Row) -> list[str]:
    figures = ("time at 0.1", "time at 1", "paper's time at 1", "up at 1", "down at 1")
    return [
        row["model"],
        f"{row['parameters']:,}",
        *(f"{row[name]:.3g}" for name in (*figures, "paper's size at 1")),
    ]


if __name__ == "__main__":
    app()
