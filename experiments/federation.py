"""The app of this repository as a federation inside one process."""

from __future__ import annotations

import random
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import FedAvg

from client.app import app
from client.models import build_model
from fedsens import FedSensConfig
from fedsens.bench._round import measuring_rounds
from fedsens.config import LEAST_CLIENTS
from fedsens.data import load_dataset
from fedsens.flower import LocalGrid, SelectiveEncryption
from fedsens.protocol import PhaseReport

PROJECT = Path(__file__).parent.parent / "pyproject.toml"
Value = str | int | float
Seen = Callable[[SelectiveEncryption, PhaseReport], None]

DataSource = Annotated[str, typer.Option(help="digits, or a data set's path.")]
ModelName = Annotated[str, typer.Option(help="A model of client/models.py.")]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds of training.")]
Clients = Annotated[int, typer.Option(min=2, help="Clients.")]


def defaults() -> dict[str, Value]:
    """The run config that pyproject.toml gives the app, ``fedsens.*`` included."""
    config: dict[str, Any] = tomllib.loads(PROJECT.read_text())["tool"]["flwr"]["app"]["config"]
    own = config.pop("fedsens")
    return config | {f"fedsens.{key}": value for key, value in own.items()}


def train_federation(clients: int, rounds: int, options: Mapping[str, Value], seen: Seen) -> None:
    """Train the app's model with all clients in this process.

    Args:
        clients: how many there are.
        rounds: of training and evaluation.
        options: run config that differs from the defaults; the images' shape is found out.
        seen: called with the strategy and the report of every phase as it ends.
    """
    few = {"fedsens.train-min-clients": min(clients, LEAST_CLIENTS)}
    config = defaults() | few | dict(options)
    shape = load_dataset(str(config["data"]), int(config["classes"])).x.shape[1:]
    seed, classes = int(config["seed"]), int(config["classes"])
    model = build_model(str(config["model"]), (shape[0], shape[1], shape[2]), classes, seed)
    random.seed(seed)
    with measuring_rounds(), TemporaryDirectory(prefix="fedsens-") as folder:
        least = min(clients, LEAST_CLIENTS)
        node = {"fedsens-state-dir": folder, "fedsens-min-contributors": least}
        node |= {"fedsens-moving-masks": "true"}  # whoever measures owns all of the data
        grid = LocalGrid(app, clients, node_config=node, run_config=config)
        strategy = SelectiveEncryption(
            FedAvg(),
            FedSensConfig.from_run_config(config),
            on_report=lambda report: seen(strategy, report),
        )
        train_config = ConfigRecord({"proximal-mu": float(config["proximal-mu"])})
        strategy.start(grid, ArrayRecord(model.state_dict()), rounds, train_config=train_config)
