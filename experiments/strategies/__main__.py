"""Runs every strategy in both modes and without encryption, and writes the table of the docs."""

from __future__ import annotations

import csv
import logging
import random
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import typer
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
    Result,
    Strategy,
)

from client.app import app
from client.models import build_model
from experiments.federation import Clients, Rounds, Value, defaults
from fedsens import FedSensConfig
from fedsens.errors import StrategyError
from fedsens.files import Arrays
from fedsens.flower import LocalGrid, SelectiveEncryption
from fedsens.keys import FederationKey, open_model

PAGE = Path(__file__).parents[2] / "docs/explanation/who-opens.md"
RESULTS = Path(__file__).parent / "results/strategies.csv"
BEGIN, END = "<!-- strategies -->", "<!-- end of strategies -->"
MU = 0.1
STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "FedAvg": FedAvg,
    "FedProx": lambda: FedProx(proximal_mu=MU),
    "FedAvgM": lambda: FedAvgM(server_learning_rate=1.0, server_momentum=0.5),
    "FedAdam": lambda: FedAdam(eta=0.01, tau=0.01),
    "FedYogi": lambda: FedYogi(eta=0.01, tau=0.01),
    "FedAdagrad": lambda: FedAdagrad(eta=0.03, tau=0.01),
    "QFedAvg": lambda: QFedAvg(client_learning_rate=0.02, q=0.1),
    "FedMedian": FedMedian,
    "FedTrimmedAvg": FedTrimmedAvg,
    "Krum": Krum,
    "MultiKrum": MultiKrum,
    "Bulyan": Bulyan,
}
COLUMNS = ("strategy", "mode", "runs", "largest difference", "accuracy")


def run_strategy(name: str, mode: str, clients: int, rounds: int) -> tuple[Result, Arrays]:
    """Train the app's model with one strategy.

    Args:
        name: of the strategy.
        mode: ``plain`` (ratio 0, which is Flower's own result bit for bit), or who opens.
        clients: how many there are.
        rounds: of training.

    Returns:
        Flower's result, and the whole model in the end.
    """
    own: dict[str, Value] = {"local-epochs": 1}
    own |= {"fedsens.ratio": 0} if mode == "plain" else {"fedsens.opens": mode}
    config = defaults() | own
    shape = tuple(int(each) for each in str(config["image-shape"]).split(","))
    model = build_model(str(config["model"]), (shape[0], shape[1], shape[2]), 10, 0)
    with TemporaryDirectory(prefix="fedsens-") as folder:
        key = Path(folder) / "fl.key"
        FederationKey.generate().save(key)
        node = {"fedsens-state-dir": f"{folder}/state"}
        node |= {"fedsens-opens": "server"} if mode == "server" else {}
        node |= (
            {"fedsens-key-file": str(key), "fedsens-min-ratio": "0.1"} if mode == "clients" else {}
        )
        grid = LocalGrid(app, clients, node_config=node, run_config=config)
        strategy = SelectiveEncryption(STRATEGIES[name](), FedSensConfig.from_run_config(config))
        random.seed(0)
        mu = ConfigRecord({"proximal-mu": MU if name == "FedProx" else 0.0})
        result = strategy.start(grid, ArrayRecord(model.state_dict()), rounds, train_config=mu)
        opener = FederationKey.load(key) if mode == "clients" else None
        return result, open_model(strategy.model, opener, 1)


def measure(name: str, clients: int, rounds: int) -> list[tuple[str, ...]]:
    """One strategy without encryption and in both modes.

    Args:
        name: of the strategy.
        clients: how many there are.
        rounds: of training.

    Returns:
        A row for each.
    """
    rows: list[tuple[str, ...]] = []
    plain: Arrays = {}
    for mode in ("plain", "clients", "server"):
        try:
            result, arrays = run_strategy(name, mode, clients, rounds)
        except StrategyError:
            rows.append((name, mode, "refused", "", ""))
            continue
        plain = plain or arrays
        gap = max(float(np.abs(arrays[each] - plain[each]).max()) for each in plain)
        accuracy = float(result.evaluate_metrics_clientapp[rounds]["accuracy"])  # type: ignore[arg-type]
        rows.append((name, mode, "yes", f"{gap:.1g}", f"{accuracy:.4f}"))
    return rows


def table(rows: list[tuple[str, ...]]) -> str:
    """The table as Markdown.

    Args:
        rows: of all strategies.

    Returns:
        Its text.
    """
    heads = ("strategy", "mode", "runs", "largest difference to plain", "accuracy")
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(clients: Clients = 4, rounds: Rounds = 10) -> None:
    """Run all strategies and write the results and the table of docs/explanation/who-opens.md."""
    rows: list[tuple[str, ...]] = []
    for name in STRATEGIES:
        try:  # both modes refuse some, whose plain run has nothing to be compared with
            SelectiveEncryption(STRATEGIES[name](), FedSensConfig(opens="server"))
        except StrategyError:
            rows.append((name, "clients, server", "refused", "", ""))
        else:
            rows += measure(name, clients, rounds)
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    before, rest = PAGE.read_text().split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{after}")


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    typer.run(main)
