"""The clients of the soak: a small network on handwritten digits, and what they trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from experiments.soak.schedule import NOT_FINITE, OTHER_SHAPE, RAISES
from fedsens import SensitivityMap, sensitivity_map
from fedsens._files import Arrays
from fedsens.data import load_dataset
from fedsens.flower import SelectiveEncryptionMod, install

BATCH, RATE = 32, 0.05


def build_model() -> nn.Module:
    """A network of 1810 parameters, the same in every process."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 10))


@dataclass
class Clients:
    """The clients' app and what every client trained in the current round.

    Attributes:
        fault_of: what is wrong with a node now.
        trained: node to examples and model, before the mod sees it.
    """

    fault_of: Callable[[int], str | None]
    trained: dict[int, tuple[int, Arrays]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        data = load_dataset("digits")
        self._images, self._labels = data.x.flatten(1), data.y

    def app(self) -> ClientApp:
        """The ClientApp."""
        app = ClientApp(mods=[SelectiveEncryptionMod()])
        app.train()(self._train)
        app.evaluate()(self._evaluate)
        install(app, self._sensitivity, examples=lambda context: len(self._data_of(context)[1]))
        return app

    def _data_of(self, context: Context) -> tuple[Tensor, Tensor]:
        config = context.node_config
        mine = slice(int(config["partition-id"]), None, int(config["num-partitions"]))
        return self._images[mine], self._labels[mine]

    def _train(self, message: Message, context: Context) -> Message:
        fault = self.fault_of(context.node_id)
        model, (images, labels) = _load(message), self._data_of(context)
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        for low in range(0, len(labels), BATCH):
            optimizer.zero_grad()
            part = slice(low, low + BATCH)
            torch.autograd.backward(cross_entropy(model(images[part]), labels[part]))
            optimizer.step()
        if fault == RAISES:
            raise ValueError("a client's function that raises")
        arrays = ArrayRecord(model.state_dict())
        own = {name: array.numpy() for name, array in arrays.items()}
        self.trained[context.node_id] = len(labels), own
        if fault == NOT_FINITE:
            arrays["2.bias"] = Array(np.full(10, np.nan, np.float32))
        elif fault == OTHER_SHAPE:
            arrays["2.bias"] = Array(np.zeros(11, np.float32))
        metrics = MetricRecord({"num-examples": len(labels)})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    def _evaluate(self, message: Message, context: Context) -> Message:
        images, labels = self._data_of(context)
        right = _load(message)(images).argmax(1) == labels
        accuracy = float(right.float().mean())
        metrics = MetricRecord({"num-examples": len(labels), "accuracy": accuracy})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    def _sensitivity(self, message: Message, context: Context) -> SensitivityMap:
        if self.fault_of(context.node_id) == RAISES:
            raise ValueError("a client's function that raises")
        images, labels = self._data_of(context)
        rule = str(message.content.config_records["config"]["rule"])
        return sensitivity_map(_load(message), [(images[:32], labels[:32])], rule=rule)


def _load(message: Message) -> nn.Module:
    model = build_model()
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    return model
