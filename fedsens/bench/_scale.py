"""How time and memory of server and clients grow with parameters and with clients.

Real strategy, mod and codec; server and clients each have a fresh process, so that the peaks of
memory are theirs alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from tempfile import TemporaryDirectory

import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy

from fedsens.bench._measure import measuring, peak_of_process, silence_logs
from fedsens.bench._remote import remote_grid
from fedsens.bench._round import Stopwatch
from fedsens.config import FedSensConfig
from fedsens.errors import BenchmarkError
from fedsens.flower import SelectiveEncryption

TENSOR = 2**20  # parameters of a tensor at most
ROUNDS = 2  # the model of the first is not encrypted yet; the second is measured
#: Sizes of models that are measured.
PARAMETERS = (10_000, 100_000, 1_000_000, 10_000_000)
#: Numbers of clients that are measured.
CLIENTS = (1, 10, 50, 200)
FEW_CLIENTS, FEW_PARAMETERS = 2, 2**18  # of the federations of the other sweep


@dataclass(frozen=True)
class ScaleRow:
    """One federation's second round.

    Attributes:
        parameters: P.
        clients: how many take part.
        ratio: share of the parameters that is encrypted; None for plain Flower.
        server_seconds: CPU time of the server.
        client_seconds: CPU time of one client, its training left out (mean).
        server_peak: bytes of memory of the server's process at most, over the whole run and with
            all libraries; None where the system does not tell.
        client_peak: likewise of the process in which the clients take turns.
    """

    parameters: int
    clients: int
    ratio: float | None
    server_seconds: float
    client_seconds: float
    server_peak: int | None
    client_peak: int | None


def bench_scale(
    parameters: Sequence[int] = PARAMETERS,
    clients: Sequence[int] = CLIENTS,
    ratio: float = 1.0,
    measured: Callable[[ScaleRow], object] = lambda row: None,
) -> dict[str, list[ScaleRow]]:
    """Grow the model with two clients, then the number of clients with a small model.

    The second is done with plain Flower too, whose server holds all models at once.

    Args:
        parameters: sizes of the model.
        clients: numbers of clients.
        ratio: share of the parameters to encrypt.
        measured: called with each row.

    Returns:
        Name of the sweep to its rows.
    """
    sweeps: dict[str, list[tuple[int, int, float | None]]] = {
        "parameters": [(size, FEW_CLIENTS, ratio) for size in parameters],
        "clients": [(FEW_PARAMETERS, count, ratio) for count in clients],
        "clients, plain": [(FEW_PARAMETERS, count, None) for count in clients],
    }
    rows: dict[str, list[ScaleRow]] = {name: [] for name in sweeps}
    for name, federations in sweeps.items():
        for federation in federations:
            rows[name].append(measure_scale(*federation))
            measured(rows[name][-1])
    return rows


def measure_scale(parameters: int, clients: int, ratio: float | None) -> ScaleRow:
    """A federation in processes of its own; BenchmarkError if a client is lost."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measure, parameters, clients, ratio).result()


def _measure(parameters: int, clients: int, ratio: float | None) -> ScaleRow:
    with measuring(), silence_logs(), TemporaryDirectory(prefix="fedsens-") as folder:
        inner = Stopwatch(clients)
        strategy: Strategy = inner
        if ratio is not None:
            strategy = SelectiveEncryption(
                inner,
                FedSensConfig(ratio=ratio, policy="magnitude", train_min_clients=1),
            )
        with remote_grid(clients, ratio is not None, folder) as (grid, used):
            strategy.start(grid, _model(parameters), ROUNDS)
            inner.begun.append(time.process_time())
        if grid.trained != ROUNDS * clients:
            raise BenchmarkError(
                f"expected {ROUNDS * clients} answers of clients, got {grid.trained}; see the "
                "warnings"
            )
    last = used.seconds[-clients:]
    server = inner.begun[-1] - inner.begun[-2]
    return ScaleRow(
        parameters, clients, ratio, server, sum(last) / clients, peak_of_process(), used.peak
    )


def _model(parameters: int) -> ArrayRecord:
    generator = torch.Generator().manual_seed(0)
    sizes = [min(TENSOR, parameters - low) for low in range(0, parameters, TENSOR)]
    state = {f"{i}.weight": torch.randn(n, generator=generator) / 20 for i, n in enumerate(sizes)}
    return ArrayRecord(state)
