"""What a federated round costs: selective encryption beside plain Flower FedAvg.

Real strategy, mod and codec run in this process on a :class:`~fedsens.flower.LocalGrid`, which
takes every message apart and rebuilds it as Flower's transport does. Training is the same work at
every ratio, so it is measured once, and clients answer with a model that has moved a little.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy
from torch import nn

from fedsens.bench._measure import measuring, silence_logs
from fedsens.bench._models import lenet, resnet18
from fedsens.config import LEAST_CLIENTS, FedSensConfig
from fedsens.crypto import Opens
from fedsens.errors import BenchmarkError, ConfigurationError
from fedsens.flower import (
    LocalGrid,
    SelectiveEncryption,
    SelectiveEncryptionMod,
    install,
    size_of,
)

BASELINE = "Flower FedAvg"
OPENED = "ratio 1, server opens"
KEY_SUM = "query.fedsens_key_sum"  # the second question of a round
#: Ratios that are measured.
RATIOS = (0.0, 0.1, 0.3, 0.5, 1.0)
# name: (classes to model, shape of an image)
MODELS: dict[str, tuple[Callable[[int], nn.Module], tuple[int, ...]]] = {
    "lenet": (lambda classes: lenet(1, 2, classes), (1, 28, 28)),
    "resnet18": (resnet18, (3, 32, 32)),
}
CLASSES, BATCH, EXAMPLES = 10, 32, 500
WARM_UP = 2  # rounds: the model of the first is not encrypted yet


def bench_round(
    model: str = "resnet18",
    images: int = 500,
    clients: int = 4,
    ratios: Sequence[float] = RATIOS,
    repeats: int = 3,
    preset: str = "precise",
) -> RoundReport:
    """Measure one round at several ratios, in this process, by its CPU time.

    The last row is ratio 1 where the server opens the mean.

    A client that is lost ends it with a BenchmarkError: the round would not be what it should be.

    Args:
        model: ``"lenet"`` or ``"resnet18"``.
        images: how many a client trains on for one epoch, in batches of 32.
        clients: how many take part.
        ratios: shares of the parameters to encrypt.
        repeats: rounds measured; the median counts.
        preset: of the codec.

    Returns:
        The figures.

    Raises:
        ConfigurationError: no such model.
    """  # noqa: DOC502 - raised by _seeded
    with measuring_rounds():
        net, shape = _seeded(model)
        state = net.state_dict()
        training = training_seconds(deepcopy(net), torch.randn(images, *shape))
        rows = [measure_round(BASELINE, None, state, clients, repeats, preset)]
        rows += [measure_round(f"ratio {r:g}", r, state, clients, repeats, preset) for r in ratios]
        rows.append(measure_round(OPENED, 1.0, state, clients, repeats, preset, "server"))
    parameters = sum(value.numel() for value in state.values())
    return RoundReport(model, parameters, clients, images, training, tuple(rows))


def initial_state(model: str) -> dict[str, torch.Tensor]:
    """The state dict that :func:`bench_round` begins with; torch's random state stays."""
    with torch.random.fork_rng(devices=[]):
        return _seeded(model)[0].state_dict()


def _seeded(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """A model and the shape of its images; torch's generator is left at what follows."""
    if name not in MODELS:
        raise ConfigurationError(f"expected a model out of {', '.join(MODELS)}, got {name!r}")
    build, shape = MODELS[name]
    torch.manual_seed(0)
    return build(CLASSES), shape


class Stopwatch(FedAvg):
    """FedAvg that notes when each round begins; nothing is evaluated, which costs more of the same.

    Attributes:
        begun: CPU time of the process at the beginning of each round.
    """

    def __init__(self, clients: int) -> None:
        with silence_logs():  # it warns that nothing is evaluated
            super().__init__(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=clients)
        self.begun: list[float] = []
        # An attribute and no method, so that it passes for FedAvg, which it is.
        self.__dict__["configure_train"] = self._configure_train

    def _configure_train(self, *given: Any) -> Any:
        """Note the time, then go on as FedAvg does."""
        self.begun.append(time.process_time())
        return FedAvg.configure_train(self, *given)


def measure_round(
    name: str,
    ratio: float | None,
    state: dict[str, torch.Tensor],
    clients: int,
    repeats: int,
    preset: str,
    opens: Opens = "clients",
) -> RoundRow:
    """Bytes of one client and CPU seconds of server and clients, of one round without training.

    Args:
        name: what to call it.
        ratio: share of the parameters to encrypt; None for plain Flower.
        state: the initial model.
        clients: how many take part.
        repeats: rounds measured; the median counts.
        preset: of the codec.
        opens: who opens the sums.

    Returns:
        The figures.

    Raises:
        BenchmarkError: a client was lost, so that a round is not what it should be.
    """
    # Plaintext and encrypted bytes of each message, by its type.
    up: dict[str, list[tuple[int, int]]] = {"train": [], KEY_SUM: []}
    down: dict[str, list[tuple[int, int]]] = {"train": [], KEY_SUM: []}

    def tap(message: Message) -> None:
        kind = message.metadata.message_type
        if kind in up and message.has_content():
            way = up if message.metadata.reply_to_message_id else down
            way[kind].append(size_of(message.content))

    inner = Stopwatch(clients)
    strategy: Strategy = inner
    if ratio is not None:
        least = min(clients, LEAST_CLIENTS)
        options = {"ratio": ratio, "preset": preset, "train-min-clients": least, "opens": opens}
        config = FedSensConfig.model_validate({"policy": "magnitude", **options})
        strategy = SelectiveEncryption(inner, config)
    with TemporaryDirectory(prefix="fedsens-bench-") as folder:
        node = {
            "fedsens-state-dir": folder,
            "fedsens-min-contributors": min(clients, LEAST_CLIENTS),
            "fedsens-opens": opens,
        }
        grid: Grid = LocalGrid(moving_app(ratio is not None), clients, node_config=node, tap=tap)
        strategy.start(grid, ArrayRecord(state), WARM_UP + repeats)
        inner.begun.append(time.process_time())
    expected = clients * (WARM_UP + repeats)
    if len(up["train"]) != expected:
        raise BenchmarkError(
            f"expected {expected} answers of clients at {name}, got {len(up['train'])}; see the "
            "errors above"
        )
    rounds = [later - begun for begun, later in zip(inner.begun, inner.begun[1:], strict=False)]
    seconds = median(rounds[WARM_UP:])
    return RoundRow(name, ratio, *_each(up, clients), *_each(down, clients), seconds, opens)


def _each(sizes: Mapping[str, Sequence[tuple[int, int]]], clients: int) -> tuple[int, int]:
    """Plaintext and encrypted bytes of a client's messages in the last round, the mean."""
    last = [size for each in sizes.values() for size in each[-clients:]]
    plain, encrypted = (sum(part) // clients for part in zip(*last, strict=True))
    return plain, encrypted


def moving_app(protected: bool) -> ClientApp:
    """An app whose training moves every weight a little, with or without fedsens's mod."""
    app = ClientApp(mods=[SelectiveEncryptionMod()] if protected else [])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = message.content.array_records["arrays"].to_torch_state_dict()
        moved = {n: v + 1e-4 if v.is_floating_point() else v for n, v in arrays.items()}
        metrics = MetricRecord({"num-examples": EXAMPLES})
        content = RecordDict({"arrays": ArrayRecord(moved), "metrics": metrics})
        return Message(content, reply_to=message)

    if protected:
        install(app, None, lambda context: EXAMPLES)
    return app


def training_seconds(model: nn.Module, x: torch.Tensor) -> float:
    """CPU seconds of one epoch of SGD over images, in batches of 32; the model is trained."""
    y = torch.randint(CLASSES, (len(x),))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    start = time.process_time()
    for xs, ys in zip(torch.split(x, BATCH), torch.split(y, BATCH), strict=True):
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(model(xs), ys))
        optimizer.step()
    return time.process_time() - start


@contextmanager
def measuring_rounds() -> Iterator[None]:
    """One thread, a quiet Flower, and torch's random state as before afterwards."""
    with torch.random.fork_rng(devices=[]), measuring(), silence_logs():
        yield


@dataclass(frozen=True)
class RoundRow:
    """One round.

    Attributes:
        name: what ran.
        ratio: share of the parameters that is encrypted; None without fedsens.
        bytes_up_plain: plaintext bytes that one client sends.
        bytes_up_encrypted: ciphertext bytes that one client sends.
        bytes_down_plain: plaintext bytes that one client gets.
        bytes_down_encrypted: ciphertext bytes that one client gets.
        seconds: CPU seconds of the server and all clients, training left out.
        opens: who opens the sums.
    """

    name: str
    ratio: float | None
    bytes_up_plain: int
    bytes_up_encrypted: int
    bytes_down_plain: int
    bytes_down_encrypted: int
    seconds: float
    opens: Opens = "clients"

    @property
    def bytes_up(self) -> int:
        """Bytes that one client sends."""
        return self.bytes_up_plain + self.bytes_up_encrypted

    @property
    def bytes_down(self) -> int:
        """Bytes that one client gets."""
        return self.bytes_down_plain + self.bytes_down_encrypted


@dataclass(frozen=True)
class RoundReport:
    """Rounds side by side.

    Attributes:
        model: its name.
        parameters: entries of its state, buffers included.
        clients: how many take part.
        images: how many a client trains on.
        training_seconds: CPU seconds of one client's training.
        rows: the rounds; the first is the baseline, without fedsens.
    """

    model: str
    parameters: int
    clients: int
    images: int
    training_seconds: float
    rows: tuple[RoundRow, ...]

    def ratios(self, row: RoundRow) -> dict[str, float]:
        """A round's costs relative to the baseline.

        They are ``up`` and ``down`` (bytes), ``both`` (their sum) and ``time`` (CPU, training
        included).
        """
        base, training = self.rows[0], self.clients * self.training_seconds
        return {
            "up": row.bytes_up / base.bytes_up,
            "down": row.bytes_down / base.bytes_down,
            "both": (row.bytes_up + row.bytes_down) / (base.bytes_up + base.bytes_down),
            "time": (training + row.seconds) / (training + base.seconds),
        }

    def content(self) -> dict[str, Any]:
        """The figures for a JSON file, relative ones included."""
        rows = [asdict(row) | {"relative": self.ratios(row)} for row in self.rows]
        return asdict(self) | {"rows": rows}
