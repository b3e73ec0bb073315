"""A small real federation in one process: real codec, real mod, real strategy, tiny model."""

from __future__ import annotations

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from fedsens import SensitivityMap, sensitivity_map
from fedsens.flower import SelectiveEncryptionMod, install

FEATURES, CLASSES = 6, 3


def build_model() -> nn.Module:
    """An MLP with a BatchNorm, so that there are float and integer buffers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES)
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
    content = RecordDict(
        {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": len(y), "loss": 1.0}),
        }
    )
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


def make_app(train=train, evaluate=evaluate, sensitivity=sensitivity, min_ratio=0.0) -> ClientApp:
    app = ClientApp(mods=[SelectiveEncryptionMod(min_ratio)])
    app.train()(train)
    app.evaluate()(evaluate)
    install(app, sensitivity, examples=lambda context: len(data_of(context)[1]))
    return app


def plain_app(train=train, evaluate=evaluate) -> ClientApp:
    app = ClientApp()
    app.train()(train)
    app.evaluate()(evaluate)
    return app


def arrays_of(record: ArrayRecord) -> dict[str, np.ndarray]:
    return {name: array.numpy() for name, array in record.items()}
