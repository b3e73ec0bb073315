"""``python -m experiments.ratios``: what a round costs by the share that is encrypted."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import torch
import typer

from experiments.cases import Case, Fresh, OutFolder, Row, measure_cases, show
from experiments.ratios.figure import draw
from fedsens.bench._round import CLASSES, MODELS, measure_round, measuring_rounds, training_seconds

RESULTS = Path(__file__).parent / "results"
RATIOS = tuple(tenth / 10 for tenth in range(11))
CLIENTS, IMAGES = 4, 500
PLAIN = "without fedsens"

app = typer.Typer(add_completion=False)


@app.command()
def main(
    out: OutFolder = RESULTS,
    model: Annotated[str, typer.Option(help="lenet or resnet18.")] = "resnet18",
    fresh: Fresh = False,
) -> None:
    """Measure rounds at ratio 0, 0.1, ... 1 beside plain Flower FedAvg."""
    if model not in MODELS:
        raise typer.BadParameter(f"expected one of {', '.join(MODELS)}, got {model!r}")
    ratios: tuple[str | float, ...] = (PLAIN, *RATIOS)
    cases: list[Case] = [{"model": model, "ratio": ratio} for ratio in ratios]
    rows = _relative(measure_cases(cases, _measure, "ratios", out, fresh))
    draw(rows, model, out / "ratios.png")
    show(
        f"{model}, {CLIENTS} clients, an epoch of {IMAGES} images: relative to plain FedAvg",
        ("ratio", "bytes up", "bytes down", "CPU without training", "with training"),
        (_line(row) for row in rows),
        f"{rows[0]['plain seconds']:.2g} s and {rows[0]['training seconds']:.3g} s are the "
        "plain round's CPU seconds without training, and the training's",
    )


def _measure(case: Case) -> Iterable[Row]:
    ratio = None if case["ratio"] == PLAIN else float(case["ratio"])
    build, shape = MODELS[str(case["model"])]
    with measuring_rounds():
        torch.manual_seed(0)
        net = build(CLASSES)
        state = {name: value.clone() for name, value in net.state_dict().items()}
        training = 0.0
        if ratio is None:
            training = CLIENTS * training_seconds(net, torch.randn(IMAGES, *shape))
        row = measure_round(str(case["ratio"]), ratio, state, CLIENTS, 3, "precise")
    yield {
        "up": row.bytes_up,
        "down": row.bytes_down,
        "seconds": row.seconds,
        "training seconds": training,
    }


def _relative(rows: list[Row]) -> list[Row]:
    plain, *others = rows
    training = plain["training seconds"]
    return [
        {
            "ratio": row["ratio"],
            "up": row["up"] / plain["up"],
            "down": row["down"] / plain["down"],
            "time": row["seconds"] / plain["seconds"],
            "time with training": (row["seconds"] + training) / (plain["seconds"] + training),
            "plain seconds": plain["seconds"],
            "training seconds": training,
        }
        for row in others
    ]


def _line(row: Row) -> list[str]:
    figures = (row[name] for name in ("up", "down", "time", "time with training"))
    return [f"{row['ratio']:g}", *(f"{figure:.2f}" for figure in figures)]


if __name__ == "__main__":
    app()
