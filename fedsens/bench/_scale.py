"""How time and memory of server and clients grow with parameters and with clients.

Real strategy, mod and codec; the clients of the grid live in a second process, so that the peak of
memory of each side is its own. Messages cross a pipe object by object, as Flower's transport sends
them. What is on its way to the clients lies in files meanwhile, as it lies in the SuperLink's
process and not in the server's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from flwr.app import ArrayRecord, Message
from flwr.serverapp.strategy import Strategy
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from fedsens.bench._measure import measuring, peak_of_process, silence_logs
from fedsens.bench._round import Stopwatch, moving_app
from fedsens.config import FedSensConfig
from fedsens.errors import BenchmarkError
from fedsens.flower import LocalGrid, SelectiveEncryption
from fedsens.protocol import LEAST_CONTRIBUTORS

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


@dataclass
class Clients:
    """What the process of the clients used.

    Attributes:
        peak: bytes of memory at most, everything included; None where that is not known.
        seconds: CPU time of each training message, in order.
    """

    peak: int | None = None
    seconds: list[float] = field(default_factory=list)


class RemoteGrid(LocalGrid):
    """Hands every message to the process of the clients, which answers one after another.

    Attributes:
        trained: how many training messages were answered without an error.
    """

    def __init__(self, connection: Connection, clients: int, protected: bool) -> None:
        """Connect so many nodes to the process of the clients."""
        super().__init__(moving_app(protected), clients)
        self._connection = connection
        self._store = TemporaryDirectory(prefix="fedsens-bench-")
        self._heads: dict[str, list[Any]] = {}
        self.trained = 0

    def close(self) -> None:
        """Remove the files."""
        self._store.cleanup()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Leave messages where the clients find them; each distinct object once."""
        sent = list(super().push_messages(messages))
        for message_id in sent:
            message = self._sent.pop(message_id)
            objects = get_all_nested_objects(message)
            self._heads[message_id] = [message.object_id, message_id, list(objects)]
            for name, each in objects.items():
                path = Path(self._store.name) / name
                if not path.exists():
                    path.write_bytes(each.deflate())
        return sent

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Hand these messages to the clients' process, and over their replies."""
        return [self._answer_to(each) for each in message_ids if each in self._heads]

    def _answer_to(self, message_id: str) -> Message:
        head = self._heads.pop(message_id)
        self._connection.send_bytes(json.dumps(head).encode())
        for name in head[2]:
            self._connection.send_bytes((Path(self._store.name) / name).read_bytes())
        reply = _receive(self._connection)
        assert reply is not None
        self.trained += reply.metadata.message_type == "train" and reply.has_content()
        return reply


@contextmanager
def remote_grid(
    clients: int, protected: bool, state_dir: str
) -> Iterator[tuple[RemoteGrid, Clients]]:
    """Start the process of the clients, and stop it in the end, which fills in what they used."""
    spawn, used = get_context("spawn"), Clients()
    mine, theirs = spawn.Pipe()
    process = spawn.Process(target=serve, args=(theirs, clients, protected, state_dir), daemon=True)
    process.start()
    theirs.close()
    grid = RemoteGrid(mine, clients, protected)
    try:
        yield grid, used
        mine.send_bytes(b"")
        report = json.loads(mine.recv_bytes())
        used.peak, used.seconds = report["peak"], report["seconds"]
        process.join()
    finally:
        grid.close()
        mine.close()
        process.kill()


def serve(connection: Connection, clients: int, protected: bool, state_dir: str) -> None:
    """Answer messages until an empty one comes, then tell what that used."""
    seconds = []
    with silence_logs():
        node = {
            "fedsens-state-dir": state_dir,
            "fedsens-min-contributors": min(clients, LEAST_CONTRIBUTORS),
        }
        grid = LocalGrid(moving_app(protected), clients, node_config=node)
        started = time.process_time()
        while (message := _receive(connection)) is not None:
            training = message.metadata.message_type == "train"
            _send(connection, grid.answer(message))
            del message
            if training:
                seconds.append(time.process_time() - started)
            started = time.process_time()
    connection.send_bytes(json.dumps({"peak": peak_of_process(), "seconds": seconds}).encode())


def _send(connection: Connection, message: Message) -> None:
    objects = get_all_nested_objects(message)
    head = [message.object_id, message.metadata.message_id, list(objects)]
    connection.send_bytes(json.dumps(head).encode())
    for each in objects.values():
        connection.send_bytes(each.deflate())


def _receive(connection: Connection) -> Message | None:
    head = connection.recv_bytes()
    if not head:
        return None
    object_id, message_id, names = json.loads(head)
    contents = {name: connection.recv_bytes() for name in names}
    return LocalGrid.rebuild(object_id, message_id, contents)
