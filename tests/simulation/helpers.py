"""A small federation inside this process, for a real protected model and its key."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from torch import nn

from fedsens import FederationKey, FedSensConfig
from fedsens.flower import LocalGrid, SelectiveEncryption, SelectiveEncryptionMod, install
from fedsens.protocol import ProtectedModel


def protected_model(
    folder: Path, model: nn.Module | None = None, **options: object
) -> tuple[ProtectedModel, FederationKey]:
    """What a server holds after a round of two clients, with the key that they have in files."""
    app = ClientApp(mods=[SelectiveEncryptionMod()])

    @app.train()
    def train(message: Message, context: object) -> Message:
        metrics = MetricRecord({"num-examples": 10})
        content = RecordDict({"arrays": message.content["arrays"], "metrics": metrics})
        return Message(content, reply_to=message)

    install(app, None, examples=lambda context: 10)
    key = FederationKey.generate()
    path = folder / "federation.key"
    path.unlink(missing_ok=True)
    key.save(path)
    node = {"fedsens-state-dir": str(folder / "state"), "fedsens-key-file": str(path)}
    node |= {"fedsens-min-ratio": 0.2}
    grid = LocalGrid(app, 3, node_config=node, run_id=random.SystemRandom().randrange(1, 2**40))
    config = FedSensConfig(**{"ratio": 0.25, "policy": "random", **options})
    strategy = SelectiveEncryption(FedAvg(fraction_evaluate=0.0), config)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = (model or nn.Linear(3, 1)).state_dict()
    strategy.start(grid, ArrayRecord(state), 1)
    return strategy.model, key
