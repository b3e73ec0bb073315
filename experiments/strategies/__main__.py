"""Runs every strategy in both modes and without encryption, and writes the table of the docs."""

from __future__ import annotations

import csv
import logging
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import typer
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import (
    Bulyan,
    DifferentialPrivacyServerSideFixedClipping,
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
from fedsens._files import Arrays
from fedsens.errors import StrategyError
from fedsens.flower import LocalGrid, SelectiveEncryption
from fedsens.keys import FederationKey, open_model
from fedsens.remainder import epsilon_of

Rows = list[tuple[str, ...]]
PARTS = ("strategies", "privacy")
PAGE = Path(__file__).parents[2] / "docs/explanation/who-opens.md"
RESULTS = Path(__file__).parent / "results"
MU = 0.1
GROUPS, OF_A_GROUP = 4, 2  # groups of a round, and their clients
# Of central differential privacy: clients, noise multiplier, and norm.
MANY, NOISE, CLIP = 40, 1.0, 0.5
SEEDS = (0, 1, 2)
STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "FedAvg": FedAvg,
    "FedProx": lambda: FedProx(proximal_mu=MU),
    "FedAvgM": lambda: FedAvgM(server_learning_rate=1.0, server_momentum=0.5),
    "FedAdam": lambda: FedAdam(eta=0.01, tau=0.01),
    "FedYogi": lambda: FedYogi(eta=0.01, tau=0.01),
    "FedAdagrad": lambda: FedAdagrad(eta=0.03, tau=0.01),
    "QFedAvg": lambda: QFedAvg(client_learning_rate=0.02, q=0.1),
    "FedMedian": FedMedian,
    "FedTrimmedAvg": lambda: FedTrimmedAvg(beta=1 / GROUPS),
    "Krum": Krum,
    "MultiKrum": MultiKrum,
    "Bulyan": Bulyan,
}
COMPARE = ("FedMedian", "FedTrimmedAvg", "Krum", "MultiKrum", "Bulyan")  # single answers
COLUMNS = ("strategy", "mode", "runs", "largest difference to plain", "accuracy")


def run_strategy(
    strategy: Strategy,
    mode: str,
    clients: int,
    rounds: int,
    mu: float = 0.0,
    own: Mapping[str, Value] | None = None,
    seed: int = 0,
) -> tuple[Result, Arrays, SelectiveEncryption]:
    """Train the app's model with one strategy.

    Args:
        strategy: the strategy.
        mode: ``plain`` (ratio 0, which is Flower's own result bit for bit), or who opens.
        clients: how many there are.
        rounds: of training.
        mu: FedProx's.
        own: run config that differs from the defaults.
        seed: of the initial model and of Flower's sampling.

    Returns:
        Flower's result, the whole model in the end, and what ran it.
    """
    config = defaults() | {"local-epochs": 1, "fedsens.train-min-clients": OF_A_GROUP}
    config |= {"fedsens.ratio": 0} if mode == "plain" else {"fedsens.opens": mode}
    config |= own or {}
    shape = tuple(int(each) for each in str(config["image-shape"]).split(","))
    model = build_model(str(config["model"]), (shape[0], shape[1], shape[2]), 10, seed)
    with TemporaryDirectory(prefix="fedsens-") as folder:
        key = Path(folder) / "fl.key"
        FederationKey.generate().save(key)
        node: dict[str, Value] = {"fedsens-state-dir": f"{folder}/state"}
        node |= {"fedsens-min-contributors": OF_A_GROUP}
        node |= {"fedsens-opens": "server"} if mode == "server" else {}
        node |= (
            {"fedsens-key-file": str(key), "fedsens-min-ratio": "0.1"} if mode == "clients" else {}
        )
        grid = LocalGrid(app, clients, node_config=node, run_config=config)
        outer = SelectiveEncryption(strategy, FedSensConfig.from_run_config(config))
        random.seed(seed)
        told = ConfigRecord({"proximal-mu": mu})
        result = outer.start(grid, ArrayRecord(model.state_dict()), rounds, train_config=told)
        opener = FederationKey.load(key) if mode == "clients" else None
        return result, open_model(outer.model, opener, 1), outer


def measure(name: str, clients: int, rounds: int) -> list[tuple[str, ...]]:
    """One strategy without encryption and in both modes, or on the means of groups.

    Args:
        name: of the strategy.
        clients: how many there are.
        rounds: of training.

    Returns:
        A row for each.
    """
    rows: list[tuple[str, ...]] = []
    plain: Arrays = {}
    mu = MU if name == "FedProx" else 0.0
    if name in COMPARE:
        clients = GROUPS * OF_A_GROUP
        alone, _, _ = run_strategy(STRATEGIES[name](), "plain", clients, rounds)
        own: dict[str, Value] = {"fedsens.groups": GROUPS}
        grouped, _, _ = run_strategy(STRATEGIES[name](), "server", clients, rounds, own=own)
        return [
            (name, f"plain, {clients} clients", "yes", "0", accuracy_of(alone, rounds)),
            (name, "clients, server", "refused", "", ""),
            (name, f"server, {GROUPS} groups", "yes", "", accuracy_of(grouped, rounds)),
        ]
    for mode in ("plain", "clients", "server"):
        try:
            result, arrays, _ = run_strategy(STRATEGIES[name](), mode, clients, rounds, mu)
        except StrategyError:
            rows.append((name, mode, "refused", "", ""))
            continue
        plain = plain or arrays
        gap = max(float(np.abs(arrays[each] - plain[each]).max()) for each in plain)
        rows.append((name, mode, "yes", f"{gap:.1g}", accuracy_of(result, rounds)))
    return rows


def accuracy_of(result: Result, rounds: int) -> str:
    """The clients' accuracy after the last round, to four digits."""
    return f"{float(result.evaluate_metrics_clientapp[rounds]['accuracy']):.4f}"  # type: ignore[arg-type]


def compare_strategies(clients: int, rounds: int) -> Rows:
    """Every strategy in every mode.

    Args:
        clients: of strategies on the mean.
        rounds: of training.

    Returns:
        Heads, and a row for each.
    """
    rows: Rows = [COLUMNS]
    for name, make in STRATEGIES.items():
        try:  # some are refused in every mode: their plain run has nothing to be compared with
            groups = GROUPS if name in COMPARE else 1
            SelectiveEncryption(make(), FedSensConfig(opens="server", groups=groups))
        except StrategyError:
            rows.append((name, "clients, server", "refused", "", ""))
        else:
            rows += measure(name, clients, rounds)
    return rows


def compare_privacy(clients: int, rounds: int) -> Rows:
    """Central differential privacy by fedsens and by Flower, at one noise multiplier.

    Args:
        clients: how many there are; all take part in each round.
        rounds: of training.

    Returns:
        Heads, and a row for each: the mean accuracy of three seeds, and their range.
    """
    flowers = DifferentialPrivacyServerSideFixedClipping
    own: dict[str, Value] = {"fedsens.dp-noise": NOISE, "fedsens.dp-clip": CLIP}
    own |= {"fedsens.ratio": 1.0, "fedsens.train-min-clients": clients}
    runs: tuple[tuple[str, str, Callable[[], Strategy], str, dict[str, Value]], ...] = (
        ("none", "the server", FedAvg, "plain", {}),
        ("Flower's", "the server", lambda: flowers(FedAvg(), NOISE, CLIP, clients), "plain", {}),
        ("fedsens, server opens", "nobody", FedAvg, "server", own),
        ("fedsens, clients open", "nobody", FedAvg, "clients", own),
    )
    rows: Rows = [("central privacy", "who is trusted with updates", "epsilon", "accuracy")]
    for name, trusted, make, mode, options in runs:
        options = options | {"fedsens.key-timeout": 600, "alpha": 100.0}  # all clients alike
        found, told = [], None
        for seed in SEEDS:
            strategy = make()
            result, _, outer = run_strategy(strategy, mode, clients, rounds, own=options, seed=seed)
            found.append(float(accuracy_of(result, rounds)))
            told = [each.central_epsilon for each in outer.reports if each.phase == "train"][-1]
            if isinstance(strategy, flowers):
                told = epsilon_of([NOISE] * rounds)
        epsilon = "infinite" if told is None else f"{told:.2f}"
        accuracy = f"{fmean(found):.3f} ({min(found):.3f} to {max(found):.3f})"
        rows.append((name, trusted, epsilon, accuracy))
    return rows


def write(part: str, rows: Rows) -> None:
    """Write rows to a file, and as a table into docs/explanation/who-opens.md.

    Args:
        part: names the file and the place.
        rows: the first has the heads.
    """
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{part}.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    lines = [rows[0], tuple("---" for _ in rows[0]), *rows[1:]]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    begin, end = f"<!-- {part} -->", f"<!-- end of {part} -->"
    before, rest = PAGE.read_text().split(begin)
    PAGE.write_text(f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}")


def main(
    parts: Annotated[
        list[str] | None, typer.Argument(metavar="[PART]...", help=f"{', '.join(PARTS)}; or all.")
    ] = None,
    clients: Clients = 4,
    rounds: Rounds = 10,
) -> None:
    """Measure, and write the results and the tables of docs/explanation/who-opens.md."""
    makers = {
        "strategies": lambda: compare_strategies(clients, rounds),
        "privacy": lambda: compare_privacy(MANY, rounds),
    }
    for part in parts or PARTS:
        write(part, makers[part]())


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    typer.run(main)
