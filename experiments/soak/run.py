"""One soak: a run of which every round is compared with the mean of its honest clients."""

from __future__ import annotations

import gc
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAvg

from experiments.cases import Row
from experiments.soak.check import Gap, largest_gap, mean_of
from experiments.soak.clients import Clients, build_model
from experiments.soak.grid import FIRST_NODE, SoakGrid
from experiments.soak.schedule import NO_KEY, SPOILS, TWICE, Schedule
from fedsens import FederationKey, FedSensConfig
from fedsens._files import Arrays
from fedsens.errors import BenchmarkError
from fedsens.flower import SelectiveEncryption
from fedsens.flower._client import Client
from fedsens.flower._records import KEY_SUM_ACTION
from fedsens.keys import open_model
from fedsens.protocol import PhaseReport

EVERY = 25  # rounds between two masks
COLLECTED = 10  # rounds between two collections of garbage, which cost as much as a round
EVALUATED = 0.25  # of the clients that train
# how the server's warnings name a client whose update is not in the mean
NAMES = re.compile(
    rf"node (\d+) is lost for (?:train|{KEY_SUM_ACTION})|"
    r"left out the (?:update|answer) of node (\d+)"
)
EXCLUDED = re.compile(r"client ([0-9a-f]{64})")
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Plan:
    """What one soak does.

    Attributes:
        clients: how many there are in the end.
        rounds: how many rounds.
        fraction: of the connected clients, sampled in every round.
        first: clients that are there from the start.
        joining: clients that join after every round.
        ratio: share of parameters that are encrypted.
        seed: of what goes wrong.
        rotate_every: rounds under one key.
        refresh_every: rounds under one mask.
        spoils: whether the first client spoils sums until it is excluded.
    """

    clients: int
    rounds: int
    fraction: float = 1.0
    first: int = 0
    joining: int = 0
    ratio: float = 0.3
    seed: int = 0
    rotate_every: int = 100
    refresh_every: int = EVERY
    spoils: bool = False


class Soak:
    """A run under way.

    Attributes:
        rows: the figures of every round so far.
    """

    def __init__(self, plan: Plan, folder: Path, on_row: Callable[[Row], None]) -> None:
        """Set the federation up.

        Args:
            plan: what to do.
            folder: for checkpoints and the clients' state.
            on_row: called after every round.
        """
        self._plan, self._on_row, self.rows = plan, on_row, list[Row]()
        self._config = FedSensConfig(
            ratio=plan.ratio,
            refresh_every=plan.refresh_every,
            rotate_at=tuple(range(plan.rotate_every + 1, plan.rounds + 1, plan.rotate_every)),
            checkpoint_dir=folder / "checkpoints",
            map_fraction=plan.fraction,
            train_min_clients=2,
        )
        self._clients = Clients(lambda node: self._grid.fault_of(node))
        self._schedule = Schedule(plan.seed, spoiler=FIRST_NODE if plan.spoils else None)
        self._grid = SoakGrid(
            self._clients.app(),
            plan.first or plan.clients,
            plan.clients,
            self._schedule,
            self._config.parameters,
            folder / "state",
        )
        self._strategy = SelectiveEncryption(
            FedAvg(plan.fraction, plan.fraction * EVALUATED), self._config, on_report=self._seen
        )
        self._started, self._named = time.process_time(), Named()
        self._row: Row = {}
        self._model: Arrays = {n: t.numpy() for n, t in build_model().state_dict().items()}
        self._spoilt = False  # whether the present model opens for nobody

    def run(self) -> list[Row]:
        """Run all rounds.

        Returns:
            A row for each.

        Raises:
            BenchmarkError: the client that spoils sums is not excluded in the end, or somebody is
                in a mean who should not be, or is missing there.
        """
        random.seed(self._plan.seed)
        with listening(self._named), one_thread():
            self._strategy.start(
                self._grid, ArrayRecord(build_model().state_dict()), self._plan.rounds
            )
        if self._plan.spoils:
            name = Client(self._grid.nodes[FIRST_NODE]).store.name
            if self._named.excluded != {name}:
                raise BenchmarkError(
                    f"expected client {name}, which spoils sums, to be excluded in the end, got "
                    f"{self._named.excluded or 'nobody'}"
                )
        return self.rows

    def _seen(self, report: PhaseReport) -> None:
        if report.phase == "train":
            self._row = self._check(report)
        elif report.phase == "evaluate":
            self._end(report)

    def _check(self, report: PhaseReport) -> Row:
        sampled = report.clients + report.lost
        faults = {node: self._grid.fault_of(node) for node in self._grid.asked}
        added = [node for node, fault in faults.items() if fault in {None, TWICE, *SPOILS}]
        wrong = {node: fault for node, fault in faults.items() if node not in added and fault}
        # Nobody trains on a model that opens for nobody, where an evaluation has not told before.
        void = self._spoilt or NO_KEY in wrong.values()
        void |= len(added) < self._strategy.config.train_min_clients
        counted = 0 if void else len(added)
        self._spoilt = not void and any(faults[node] in SPOILS for node in added)
        if (sampled, report.clients) != (len(faults), counted):
            raise BenchmarkError(
                f"expected {counted} of {len(faults)} clients in the mean of round "
                f"{report.round}, got {report.clients} of {sampled}: {wrong}"
            )
        if unnamed := set(wrong) - self._named.nodes:
            raise BenchmarkError(f"expected a warning that names {sorted(unnamed)}, got none")
        return {
            "round": report.round,
            "connected": len(self._grid.nodes),
            "sampled": sampled,
            "in the mean": report.clients,
            "left out": "; ".join(sorted(wrong.values())),
            "twice": sum(fault == TWICE for fault in faults.values()),
            "spoilt": int(self._spoilt),
            "excluded": len(self._named.excluded),
            **self._gap([] if void or self._spoilt else added).figures(),
        }

    def _gap(self, honest: list[int]) -> Gap:
        """How far the model is from the mean, or from itself where the round changes nothing.

        Where a sum was spoilt it is the model that the run goes back to.
        """
        model = self._strategy._run.accepted if self._spoilt else self._strategy.model
        bound = 0.0
        opened = open_model(model, self._key(), 1)
        expected = self._model
        if honest and model.aggregate is not None:
            expected = mean_of([self._clients.trained[node] for node in honest])
            error = self._config.parameters.error_bound(len(honest))
            bound = error / model.aggregate.header.weight
        self._model = opened
        return largest_gap(opened, expected, model.layout, model.mask, bound)

    def _end(self, report: PhaseReport) -> None:
        now = time.process_time()
        row = {
            **self._row,
            "accuracy": round(report.metrics.get("accuracy", 0.0), 4),
            "CPU seconds": round(now - self._started, 4),
            "MiB": _mebibytes(resident()),
        }
        self._spoilt = self._spoilt and self._strategy.model is not self._strategy._run.accepted
        if report.round % COLLECTED == 0:
            gc.collect()
        self._on_row(row)
        self.rows.append(row)
        self._clients.trained.clear()
        self._named.nodes.clear()
        self._grid.next_round()
        self._grid.join(self._plan.joining)
        self._started = time.process_time()

    def _key(self) -> FederationKey | None:
        """The key of this round, read as one of its holders reads it."""
        aggregate = self._strategy.model.aggregate
        if aggregate is None:
            return None
        fingerprint = aggregate.header.fingerprint
        for context in self._grid.nodes.values():
            key = Client(context).store.key
            if key is not None and key.fingerprint == fingerprint:
                return key
        raise BenchmarkError(f"expected a client with the key {fingerprint}, got none")


class Named(logging.Handler):
    """Collects the clients that the server's warnings name.

    Attributes:
        nodes: their numbers.
        excluded: names of those that are excluded from the run.
    """

    def __init__(self) -> None:
        """Begin with none."""
        super().__init__(logging.WARNING)
        self.nodes, self.excluded = set[int](), set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        """Read one line."""
        line = record.getMessage()
        if match := NAMES.match(line):
            self.nodes.add(int(match[1] or match[2]))
        if line.startswith("excluded from this run"):
            self.excluded = set(EXCLUDED.findall(line))


@contextmanager
def listening(handler: logging.Handler) -> Iterator[None]:
    """Send fedsens's log to a handler and nowhere else, and keep Flower's quiet."""
    logger, flower = logging.getLogger("fedsens"), logging.getLogger("flwr")
    before = logger.propagate, flower.level
    logger.addHandler(handler)
    logger.propagate = False
    flower.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before[0]
        flower.setLevel(before[1])


@contextmanager
def one_thread() -> Iterator[None]:
    """Tiny models are faster with one thread, and sums have one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def soak(plan: Plan, on_row: Callable[[Row], None] = lambda row: None) -> list[Row]:
    """Run a soak in a folder of its own, which is removed.

    Args:
        plan: what to do.
        on_row: called after every round.

    Returns:
        A row for each round.
    """
    with TemporaryDirectory(prefix="fedsens-soak-") as folder:
        return Soak(plan, Path(folder), on_row).run()


def resident() -> int | None:
    """Bytes of memory that this process holds now; None if unknown."""
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * PAGE if path.exists() else None


def _mebibytes(count: int | None) -> float | None:
    return None if count is None else round(count / 2**20, 2)
