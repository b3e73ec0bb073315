"""What a round of Flower's SecAgg+ costs.

SecAgg+ hides single updates from the server without a shared key; the server learns their sum.
Flower has it for its legacy strategies only, so it cannot take fedsens's place in an app of today:
it is here for its costs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from flwr.app import Context, Message, RecordDict
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import NDArrays, Scalar, ndarrays_to_parameters
from flwr.server import LegacyContext, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow

from fedsens.bench._measure import silence_logs
from fedsens.bench._round import RoundRow
from fedsens.errors import BenchmarkError
from fedsens.flower import LocalGrid, size_of

NAME = "Flower SecAgg+"
EXAMPLES = 500  # of every client


class _Grid(LocalGrid):
    """A local grid that says which run it is, as the legacy path asks."""

    @property
    def run(self) -> Any:
        return SimpleNamespace(run_id=1)


class _Stopwatch(FedAvg):
    """FedAvg that notes when each round begins, and its clients."""

    def __init__(self, clients: int, state: Sequence[np.ndarray[Any, Any]]) -> None:
        super().__init__(
            fraction_evaluate=0.0,
            min_fit_clients=clients,
            min_available_clients=clients,
            initial_parameters=ndarrays_to_parameters(list(state)),
        )
        self.begun: list[float] = []
        self.used: list[int] = []

    def configure_fit(self, *given: Any, **named: Any) -> Any:
        self.begun.append(time.process_time())
        return super().configure_fit(*given, **named)

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        self.used.append(len(results))
        return super().aggregate_fit(server_round, results, failures)


class _Client(NumPyClient):
    """Moves every weight a little, as the app of the other rounds does."""

    def fit(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[NDArrays, int, dict[str, Scalar]]:
        moved = [p + p.dtype.type(1e-4) if p.dtype.kind == "f" else p for p in parameters]
        return moved, EXAMPLES, {}


def measure_secagg(state: dict[str, torch.Tensor], clients: int, repeats: int) -> RoundRow:
    """Bytes of one client in all four stages, and CPU seconds of a round without training.

    Args:
        state: the initial model.
        clients: how many take part, at least 2; each shares its keys with all others.
        repeats: rounds measured; the median counts.

    Returns:
        The figures; the masked vectors count as plaintext bytes.

    Raises:
        BenchmarkError: a round failed or lost a client.
    """
    sizes = {"up": 0, "down": 0}

    def tap(message: Message) -> None:
        if message.has_content():
            way = "up" if message.metadata.reply_to_message_id else "down"
            sizes[way] += sum(size_of(message.content))

    app = ClientApp(client_fn=lambda context: _Client().to_client(), mods=[secaggplus_mod])
    strategy = _Stopwatch(clients, [value.numpy() for value in state.values()])
    context = Context(1, 1, {}, RecordDict(), {})
    legacy = LegacyContext(context, ServerConfig(num_rounds=repeats), strategy)
    run = DefaultWorkflow(fit_workflow=SecAggPlusWorkflow(1.0, 0.5, max_weight=2 * EXAMPLES))
    with silence_logs():  # it warns that metrics are not averaged, and of even shares
        run(_Grid(app, clients, tap=tap), legacy)
    strategy.begun.append(time.process_time())
    if strategy.used != [clients] * repeats:
        raise BenchmarkError(
            f"expected {repeats} rounds of {clients} clients, got {strategy.used}; see the warnings"
        )
    seconds = [
        later - begun for begun, later in zip(strategy.begun, strategy.begun[1:], strict=False)
    ]
    up, down = (size // (clients * repeats) for size in (sizes["up"], sizes["down"]))
    return RoundRow(NAME, None, up, 0, down, 0, median(seconds))
