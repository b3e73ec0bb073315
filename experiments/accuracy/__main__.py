"""``python -m experiments.accuracy``: does encryption change what is learned?"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import typer

from experiments.accuracy.figure import draw
from experiments.cases import Case, Fresh, OutFolder, Row, measure_cases, show
from experiments.federation import Clients, DataSource, ModelName, Rounds, Value, train_federation
from fedsens.flower import SelectiveEncryption
from fedsens.protocol import PhaseReport

RESULTS = Path(__file__).parent / "results"
ALPHAS = (0.1, 1.0, 100.0)  # of the Dirichlet distribution: few classes a client, some, all alike
RATIOS = (0.0, 0.1, 1.0)

app = typer.Typer(add_completion=False)


@app.command()
def main(
    out: OutFolder = RESULTS,
    data: DataSource = "digits",
    model: ModelName = "digits-cnn",
    rounds: Rounds = 20,
    clients: Clients = 8,
    fresh: Fresh = False,
) -> None:
    """Train at ratio 0, 0.1 and 1 with labels drawn from Dirichlet 0.1, 1 and 100."""
    common: Case = {"data": Path(data).stem, "model": model, "clients": clients, "rounds": rounds}
    cases = [common | {"alpha": a, "ratio": r} for a in ALPHAS for r in RATIOS]
    rows = measure_cases(cases, lambda case: _train(case, data), "accuracy", out, fresh)
    draw(rows, ALPHAS, out / "accuracy.png")
    show(
        f"{model} on {common['data']}, {clients} clients, {rounds} rounds",
        ("Dirichlet", "ratio", "accuracy", "best", "rounds to 90 % of it"),
        (_line(rows, alpha, ratio) for alpha in ALPHAS for ratio in RATIOS),
        "accuracy: federated, after the last round",
    )


def _train(case: Case, data: str) -> Iterable[Row]:
    rows: list[Row] = []

    def seen(strategy: SelectiveEncryption, report: PhaseReport) -> None:
        if report.phase == "evaluate":
            figures = {name: report.metrics[name] for name in ("accuracy", "loss")}
            rows.append({"round": report.round} | figures)

    options: dict[str, Value] = {
        "data": data,
        "model": str(case["model"]),
        "alpha": case["alpha"],
        "fedsens.ratio": case["ratio"],
        "local-epochs": 1,
    }
    train_federation(int(case["clients"]), int(case["rounds"]), options, seen)
    return rows


def _line(rows: list[Row], alpha: float, ratio: float) -> list[str]:
    curve = [row["accuracy"] for row in rows if (row["alpha"], row["ratio"]) == (alpha, ratio)]
    fast = next(number for number, value in enumerate(curve, 1) if value >= 0.9 * max(curve))
    return [f"{alpha:g}", f"{ratio:g}", f"{curve[-1]:.4f}", f"{max(curve):.4f}", str(fast)]


if __name__ == "__main__":
    app()
