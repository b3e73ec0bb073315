"""A small real federation in one process: real codec, real mod, real strategy, tiny model."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from torch import nn

from fedsens import FederationKey, FedSensConfig, SensitivityMap, sensitivity_map
from fedsens.flower import LocalGrid, SelectiveEncryption, SelectiveEncryptionMod, install
from fedsens.flower._client import Client
from fedsens.keys import open_model

FEATURES, CLASSES = 6, 3


def build_model() -> nn.Module:
    """An MLP with a BatchNorm, so that there are float and integer buffers.

    It is smooth, so that training stretches a small difference by a bounded factor.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, CLASSES)
        )


def initial_arrays() -> ArrayRecord:
    return ArrayRecord(build_model().state_dict())


def load(message: Message) -> nn.Module:
    model = build_model()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return model


def data_of(context: Context) -> tuple[torch.Tensor, torch.Tensor]:
    partition = int(context.node_config["partition-id"])
    generator = torch.Generator().manual_seed(partition)
    count = 20 + 10 * partition
    x = torch.randn(count, FEATURES, generator=generator)
    return x, (x[:, :CLASSES] + 0.1 * partition).argmax(1)


def train(message: Message, context: Context) -> Message:
    model = load(message)
    x, y = data_of(context)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    content = RecordDict({
        "arrays": ArrayRecord(model.state_dict()),
        "metrics": MetricRecord({"num-examples": len(y), "loss": 1.0}),
    })
    return Message(content, reply_to=message)


def evaluate(message: Message, context: Context) -> Message:
    model = load(message).eval()
    x, y = data_of(context)
    accuracy = (model(x).argmax(1) == y).float().mean().item()
    metrics = MetricRecord({"num-examples": len(y), "accuracy": accuracy})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def sensitivity(message: Message, context: Context) -> SensitivityMap:
    rule = message.content["config"]["rule"]
    return sensitivity_map(load(message), [data_of(context)], rule=rule)


def count(context: Context) -> int:
    return len(data_of(context)[1])


def make_app(
    train=train, evaluate=evaluate, sensitivity=sensitivity, min_ratio=0.0, examples=count
) -> ClientApp:
    app = ClientApp(mods=[SelectiveEncryptionMod(min_ratio)])
    app.train()(train)
    app.evaluate()(evaluate)
    install(app, sensitivity, examples=examples)
    return app


def plain_app(train=train, evaluate=evaluate) -> ClientApp:
    app = ClientApp()
    app.train()(train)
    app.evaluate()(evaluate)
    return app


def arrays_of(record: ArrayRecord) -> dict[str, np.ndarray]:
    return {name: array.numpy() for name, array in record.items()}


def config_of(**options) -> FedSensConfig:
    """A configuration of few clients, whose owners have chosen that two are enough."""
    return FedSensConfig(**{"train_min_clients": 2, **options})


class Recorder:
    """A train function that remembers what every client trained, before the mod sees it.

    Attributes:
        trained: round to node to (examples, arrays).
        received: round to the models that the nodes were given.
    """

    def __init__(self, train=train) -> None:
        self._train = train
        self.trained: dict[int, dict[int, tuple[int, dict[str, np.ndarray]]]] = {}
        self.received: dict[int, list[dict[str, np.ndarray]]] = {}

    def __call__(self, message: Message, context: Context) -> Message:
        server_round = message.content["config"]["server-round"]
        self.received.setdefault(server_round, []).append(arrays_of(message.content["arrays"]))
        reply = self._train(message, context)
        answer = reply.content["metrics"]["num-examples"], arrays_of(reply.content["arrays"])
        self.trained.setdefault(server_round, {})[context.node_id] = answer
        return reply

    def mean(self, server_round: int, nodes=None) -> dict[str, np.ndarray]:
        """FedAvg's definition in float64, over some of the nodes."""
        answers = self.trained[server_round]
        chosen = [answers[node] for node in (answers if nodes is None else nodes)]
        total = sum(examples for examples, _ in chosen)
        return {
            name: sum(arrays[name].astype(np.float64) * (n / total) for n, arrays in chosen)
            for name in chosen[0][1]
        }


class Run:
    """A finished run, and the opened global model after each of its rounds."""

    def __init__(
        self, *, inner=None, rounds=2, grid=None, app=None, initial=None, timeout=3600, **options
    ):
        self.models: dict[int, dict[str, np.ndarray]] = {}
        self.grid = grid or LocalGrid(app or make_app(), 3)
        self.strategy = SelectiveEncryption(
            inner or FedAvg(), config_of(**options), on_report=self._seen
        )
        random.seed(0)
        self.result = self.strategy.start(
            self.grid, initial_arrays() if initial is None else initial, rounds, timeout
        )

    def _seen(self, report) -> None:
        if report.phase == "train":
            self.models[report.round] = self.opened()

    def opened(self) -> dict[str, np.ndarray]:
        """The global model as a key holder sees it."""
        model = self.strategy.model
        return open_model(model, self.key if model.aggregate else None, 1)

    @property
    def key(self) -> FederationKey:
        """The federation's key, read as one of its holders reads it."""
        keys = self.strategy._run.keys
        return shared_key(self.grid, keys.fingerprint, keys.key_index)

    def reports(self, phase: str):
        return [report for report in self.strategy.reports if report.phase == phase]


def run_plain(inner=None, rounds=2, app=None, clients=3, initial=None):
    """The same federation without fedsens."""
    random.seed(0)
    grid = LocalGrid(app or plain_app(), clients)
    return (inner or FedAvg()).start(grid, initial_arrays() if initial is None else initial, rounds)


def state_dir() -> Path:
    return Path(os.environ["FEDSENS_STATE_DIR"])


def key_of(grid: LocalGrid, node: int, key_index: int | None = None) -> FederationKey | None:
    """A key that a client holds, as it reads it itself; the one in force if none is named."""
    store = Client(grid.nodes[node]).store
    return store.key if key_index is None else store.key_of(key_index)


def shared_key(
    grid: LocalGrid, fingerprint: str = "", key_index: int | None = None
) -> FederationKey:
    """The key with a fingerprint that some client of a grid holds; any key if none is given."""
    keys = [key_of(grid, node, key_index) for node in grid.nodes]
    return next(key for key in keys if key and fingerprint in {"", key.fingerprint})


def largest_difference(one, other) -> float:
    """max |a - b| over the floating-point tensors of two models; NaN counts as infinite."""
    assert set(one) == set(other)
    names = [name for name in one if np.asarray(one[name]).dtype.kind == "f"]
    gaps = [np.abs(np.asarray(one[n], float) - np.asarray(other[n], float)) for n in names]
    return max((float(np.nan_to_num(gap, nan=np.inf).max()) for gap in gaps if gap.size), default=0)


def rounding(arrays) -> float:
    """What float32 arithmetic may add to a mean of models of this size."""
    largest = max(float(np.abs(a).max()) for a in arrays.values() if a.size)
    return 4 * float(np.finfo(np.float32).eps) * largest


def is_reply(message: Message, kind: str = "train") -> bool:
    metadata = message.metadata
    return metadata.message_type == kind and bool(metadata.reply_to_message_id)


def is_request(message: Message, kind: str = "train") -> bool:
    metadata = message.metadata
    return metadata.message_type == kind and not metadata.reply_to_message_id
