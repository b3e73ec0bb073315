"""The app of this folder as a federation inside one process, with and without fedsens."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fedsens.flower import LocalGrid
from fedsens.flower._records import PREFIX, size_of

FOLDER = Path(__file__).parent
PLAIN: dict[str, Any] = {}  # the options of a run without fedsens


@dataclass
class Traffic:
    """What crosses between the server and its clients in training.

    Attributes:
        up: bytes of the clients' answers, plain and encrypted, and of what makes these open.
        down: bytes of the models that they get.
        names: of all tensors, both ways.
        metrics: of the clients' evaluations, in order.
    """

    up: int = 0
    down: int = 0
    names: set[str] = field(default_factory=set)
    metrics: list[dict[str, float]] = field(default_factory=list)

    def saw(self, message: Message) -> None:
        """Count a message, as it crosses."""
        if message.has_error():
            raise RuntimeError(message.error.reason)
        answer, kind = bool(message.metadata.reply_to_message_id), message.metadata.message_type
        content = message.content
        if kind in ("train", "query.fedsens_key_sum"):
            count = sum(size_of(content))
            self.up += count * answer
            self.down += count * (not answer)
            records = [r for key, r in content.array_records.items() if not key.startswith(PREFIX)]
            self.names |= {name for record in records for name in record}
        elif kind == "evaluate" and answer:
            self.metrics.append(dict(content["metrics"]))  # type: ignore[arg-type]


def load_app(module: str) -> Any:
    """A module of the app; torchvision, where it does not fit torch, is left out."""
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))
        try:
            import_module("torchvision")
        except (ImportError, RuntimeError):
            sys.modules["torchvision"] = None  # type: ignore[assignment]
    return import_module(f"lorafinetune.{module}")


def run_app(
    model: str,
    options: dict[str, Any],
    rounds: int,
    clients: int,
    *,
    dtype: str = "bfloat16",
    seed: int = 0,
    out: Path | None = None,
) -> Traffic:
    """Fine-tune an adapter.

    Args:
        model: ``qwen2``, ``llama`` or ``bert``.
        options: ``fedsens.*`` of the run; :data:`PLAIN` for FedAvg without fedsens.
        rounds: of training and evaluation.
        clients: how many there are.
        dtype: of the base and the head.
        seed: of the order in which clients are asked and their adapters summed, nothing else.
        out: folder for the protected model and the clients' state; None keeps neither.

    Returns:
        What crossed; the metrics are those of every client and round.
    """
    client = load_app("client_app")
    config: dict[str, Any] = {
        "model": model,
        "dtype": dtype,
        "local-epochs": 1,
        "learning-rate": 0.003,
        "num-server-rounds": rounds,
        "output-dir": str(out or ""),
        **options,
    }
    traffic = Traffic()
    random.seed(seed)  # Flower samples nodes with the global generator
    with TemporaryDirectory(prefix="fedsens-") as state:
        node = {"fedsens-state-dir": str(out / "state") if out else state}
        app = client.app if options else _without(client)
        grid = LocalGrid(app, clients, node_config=node, run_config=config, tap=traffic.saw)
        if options:
            load_app("server_app").app(grid, Context(1, 1, {}, RecordDict(), config))
        else:
            task = load_app("task")
            adapter = task.adapter_of(task.get_model(model, dtype))
            FedAvg().start(grid, ArrayRecord(adapter), rounds)
    return traffic


def _without(client: Any) -> ClientApp:
    """The same client without fedsens."""
    app = ClientApp()
    app.train()(client.train)
    app.evaluate()(client.evaluate)
    return app
