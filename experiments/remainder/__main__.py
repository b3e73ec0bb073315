"""``python -m experiments.remainder``: accuracy with a noised or withheld remainder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Annotated

import typer

from experiments.cases import Case, Fresh, OutFolder, Row, measure_cases, show
from experiments.federation import Clients, DataSource, ModelName, Rounds, Value, train_federation
from experiments.remainder.figure import draw
from fedsens.flower import SelectiveEncryption
from fedsens.protocol import PhaseReport

RESULTS = Path(__file__).parent / "results"
RATIO = 0.1
WAYS: dict[str, dict[str, Value]] = {
    "plain": {},
    "ratio 1": {"ratio": 1.0},
    "gaussian 1": {"remainder": "noised", "noise-scale": 1.0},
    "gaussian 3": {"remainder": "noised", "noise-scale": 3.0},
    "gaussian 10": {"remainder": "noised", "noise-scale": 10.0},
    "gaussian 30": {"remainder": "noised", "noise-scale": 30.0},
    "laplace 1": {"remainder": "noised", "noise": "laplace", "noise-scale": 1.0},
    "withheld": {"remainder": "withheld"},
    "withheld, refresh 2": {"remainder": "withheld", "refresh-every": 2},
}

app = typer.Typer(add_completion=False)


@app.command()
def main(
    out: OutFolder = RESULTS,
    data: DataSource = "digits",
    model: ModelName = "digits-cnn",
    rounds: Rounds = 20,
    clients: Clients = 8,
    policy: Annotated[str, typer.Option(help="Mask policy at ratio 0.1.")] = "critical_layers",
    seeds: Annotated[int, typer.Option(min=1, help="Repetitions.")] = 3,
    fresh: Fresh = False,
) -> None:
    """Train with each way to treat the 90 % that are not encrypted."""
    common: Case = {
        "data": Path(data).stem,
        "model": model,
        "policy": policy,
        "clients": clients,
        "rounds": rounds,
    }
    cases = [common | {"seed": seed, "way": way} for seed in range(seeds) for way in WAYS]
    rows = measure_cases(cases, lambda case: _train(case, data), "remainder", out, fresh)
    draw(rows, list(WAYS), out / "remainder.png")
    show(
        f"{model} on {common['data']}, {clients} clients, {rounds} rounds",
        ("remainder", "accuracy", "least", "most", "encrypted", "kB plain", "kB up"),
        (_line([row for row in rows if row["way"] == way], rounds) for way in WAYS),
        f"accuracy: after the last round, mean of {seeds} seeds; encrypted, kB: in that round",
    )


def _train(case: Case, data: str) -> Iterable[Row]:
    rows: list[Row] = []
    sent: dict[str, float] = {}

    def seen(strategy: SelectiveEncryption, report: PhaseReport) -> None:
        if report.phase == "train":
            sent["up plain"] = report.bytes_up_plain / report.clients
            sent["up encrypted"] = report.bytes_up_encrypted / report.clients
            sent["encrypted"] = strategy.model.mask.ratio
        elif report.phase == "evaluate":
            figures = {name: report.metrics[name] for name in ("accuracy", "loss")}
            rows.append({"round": report.round} | figures | sent)

    way: dict[str, Value] = {"ratio": RATIO, "policy": str(case["policy"])}
    way |= WAYS[str(case["way"])]
    options: dict[str, Value] = {
        "data": data,
        "model": str(case["model"]),
        "seed": int(case["seed"]),
        "local-epochs": 1,
    }
    options |= {f"fedsens.{name}": value for name, value in way.items()}
    train_federation(int(case["clients"]), int(case["rounds"]), options, seen)
    return rows


def _line(rows: list[Row], rounds: int) -> list[str]:
    last = [row for row in rows if row["round"] == rounds]
    reached = [row["accuracy"] for row in last]
    return [
        str(last[0]["way"]),
        *(f"{value:.4f}" for value in (mean(reached), min(reached), max(reached))),
        f"{mean(row['encrypted'] for row in last):.1%}",
        *(f"{mean(size) / 1e3:.1f}" for size in _sizes(last)),
    ]


def _sizes(rows: list[Row]) -> tuple[list[float], list[float]]:
    plain = [row["up plain"] for row in rows]
    return plain, [row["up plain"] + row["up encrypted"] for row in rows]


if __name__ == "__main__":
    app()
