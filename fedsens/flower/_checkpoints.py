"""From a run to its checkpoints and back: what is saved, what must agree, and the rounds after it.

FedAvg and FedProx keep nothing between rounds. With ratio 0 any strategy may be wrapped, and
server-side optimisers keep moments. A strategy that keeps something else cannot be checkpointed
and is refused, because a resumed run would silently differ.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from numbers import Integral, Real
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedsens._files import Arrays
from fedsens.config import FedSensConfig
from fedsens.errors import CheckpointError, ConfigurationError, FedSensError, StrategyError
from fedsens.flower._state import ServerState
from fedsens.protocol import Checkpoint, CheckpointFolder, Figures, PhaseReport, Progress

logger = logging.getLogger(__name__)

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]
FUNCTIONS = (FunctionType, MethodType, BuiltinFunctionType, type)
PLAIN = (str, int, float, bool, type(None))
NUMPY = (np.ndarray, np.generic)  # arithmetic on arrays of no dimension leaves NumPy scalars
KIND = "fedsens.kind"  # marks the description of arrays among an attribute's plain values
SEPARATOR = "/"
THRESHOLD = "min_"  # such settings say how many clients must be there, not what is computed


@dataclass
class Metrics:
    """The metrics of a run so far, by round; the fields of Flower's Result.

    Attributes:
        train: of training.
        evaluate: of evaluation by clients.
        central: of evaluation by the server.
    """

    train: dict[int, MetricRecord] = field(default_factory=dict)
    evaluate: dict[int, MetricRecord] = field(default_factory=dict)
    central: dict[int, MetricRecord] = field(default_factory=dict)

    def result(self) -> Result:
        """A result of Flower's with these metrics, whose dictionaries are this history's own."""
        return Result(
            train_metrics_clientapp=self.train,
            evaluate_metrics_clientapp=self.evaluate,
            evaluate_metrics_serverapp=self.central,
        )


class Checkpoints:
    """Saves a run after every round, and brings a new process to where an earlier one was."""

    def __init__(
        self, config: FedSensConfig, inner: Strategy, app_config: Mapping[str, Any]
    ) -> None:
        """Remember the conditions of a run that has a folder; nothing is written yet."""
        if config.checkpoint_dir is None:
            raise CheckpointError("expected a folder for checkpoints, got none")
        self._folder = CheckpointFolder(config.checkpoint_dir)
        self._inner = inner
        self._settings = capture(inner)
        self._config = config.result_options
        self._key_index_at = config.key_index_at
        self._app = {name: _as_json(value) for name, value in app_config.items()}

    def create_folder(self) -> None:
        """Make sure that a new run writes over no other run's checkpoints."""
        self._folder.create()

    def save(
        self, server_round: int, state: ServerState, metrics: Metrics, reports: list[PhaseReport]
    ) -> None:
        """Save the state after a round's training; what cannot be saved does not end the run.

        Central privacy is accounted in another file, and without it no mean is opened.
        """
        now = capture(self._inner)
        progress = Progress(
            round=server_round,
            fingerprint=state.keys.fingerprint,
            key_index=state.keys.key_index,
            reference=state.reference,
            experiment=state.experiment,
            origin=state.origin,
            refused=state.refused,
            config=self._config,
            app=self._app,
            strategy=type(self._inner).__name__,
            settings=_plain(self._settings),
            state=_changed(self._settings, now),
            train=_figures(metrics.train),
            evaluate=_figures(metrics.evaluate),
            central=_figures(metrics.central),
            reports=reports,
            random=_random_state(),
        )
        try:
            self._folder.save(Checkpoint(state.model, state.mask, progress, now.arrays))
        except FedSensError as error:
            logger.error(
                "round %d is not saved, the run goes on: %s; make room in %s",
                server_round,
                error,
                self._folder.path,
            )

    def latest(self) -> Checkpoint:
        """The newest intact checkpoint, refused if it was made with other options."""
        checkpoint = self._folder.latest()
        then, now = checkpoint.progress, _plain(self._settings)
        name = type(self._inner).__name__
        problems = [] if then.strategy == name else [f"strategy was {then.strategy}, is {name}"]
        problems += _differences("fedsens.", then.config, self._config)
        problems += _differences("", then.app, self._app)
        problems += _differences("strategy's ", _compared(then.settings), _compared(now))
        key_index = self._key_index_at(then.round)
        if key_index != then.key_index:
            problems.append(
                f"fedsens.rotate-at asks for {key_index} rotations up to round {then.round}, the "
                f"run had {then.key_index}"
            )
        if problems:
            raise CheckpointError(
                f"expected the options of the run that is saved in {self._folder.path}, got "
                f"others: {'; '.join(problems)}; use those of the saved run, or start anew in "
                "another folder"
            )
        return checkpoint

    def restore(self, checkpoint: Checkpoint) -> Metrics:
        """Set the inner strategy and the sampling of nodes to where they were; the metrics."""
        progress = checkpoint.progress
        restore(self._inner, InnerState(progress.state, checkpoint.inner))
        if progress.random is not None:
            version, words, gauss = progress.random
            random.setstate((version, tuple(words), gauss))
        return Metrics(*map(_records, (progress.train, progress.evaluate, progress.central)))


def config_of_start(**records: ConfigRecord | None) -> dict[str, Any]:
    """Flower's configurations of ``start``, for comparison, without the round that it adds."""
    return {
        f"{name}.{key}": value
        for name, record in records.items()
        for key, value in (record or {}).items()
        if key != "server-round"
    }


def _changed(start: InnerState, now: InnerState) -> dict[str, Any]:
    return {
        name: value
        for name, value in now.plain.items()
        if name not in start.plain or _holds_arrays(value) or start.plain[name] != value
    }


def _plain(state: InnerState) -> dict[str, Any]:
    return {name: value for name, value in state.plain.items() if not _holds_arrays(value)}


def _holds_arrays(value: Any) -> bool:
    return isinstance(value, dict) and KIND in value


def _compared(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if not name.startswith(THRESHOLD)}


def _differences(kind: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{kind}{name.replace('_', '-')} was {then.get(name)!r}, is {now.get(name)!r}"
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    ]


def _as_json(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value


def _figures(records: dict[int, MetricRecord]) -> Figures:
    return {number: dict(record) for number, record in records.items()}


def _records(figures: Figures) -> dict[int, MetricRecord]:
    return {number: MetricRecord(dict(values)) for number, values in figures.items()}


def _random_state() -> tuple[int, list[int], float | None]:
    version, words, gauss = random.getstate()
    return version, list(words), gauss


@dataclass
class InnerState:
    """The attributes of a strategy, in a form that a file can hold.

    Attributes:
        plain: attribute to JSON value; of arrays their description.
        arrays: "attribute/name" to array.
    """

    plain: dict[str, Any] = field(default_factory=dict)
    arrays: Arrays = field(default_factory=dict)


def capture(strategy: Strategy) -> InnerState:
    """A strategy's attributes, plain or arrays, as they are now; functions are left out."""
    state = InnerState()
    for name, value in vars(strategy).items():
        if isinstance(value, FUNCTIONS):
            continue
        if _is_plain(value):
            state.plain[name] = deepcopy(value)
            continue
        kind, arrays = _arrays(value)
        if kind is None:
            raise StrategyError(
                f"expected a strategy whose state a checkpoint can hold, got "
                f"{type(strategy).__name__} with {name!r} of type {type(value).__name__}; clear "
                "fedsens.checkpoint-dir, or keep that state as numbers or NumPy arrays"
            )
        state.plain[name] = {KIND: kind, "names": list(arrays)}
        state.arrays |= {f"{name}{SEPARATOR}{key}": array for key, array in arrays.items()}
    return state


def restore(strategy: Strategy, state: InnerState) -> None:
    """Set attributes as :func:`capture` found them; those that the state does not name stay."""
    for name, value in state.plain.items():
        if isinstance(value, dict) and KIND in value:
            arrays = {key: state.arrays[f"{name}{SEPARATOR}{key}"] for key in value["names"]}
            value = _rebuild(value[KIND], arrays)
        setattr(strategy, name, value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return isinstance(value, PLAIN)


def _arrays(value: Any) -> tuple[str | None, Arrays]:
    if isinstance(value, np.ndarray):
        return "array", {"0": value}
    if isinstance(value, ArrayRecord):
        return "record", {name: array.numpy() for name, array in value.items()}
    if isinstance(value, list) and all(isinstance(each, NUMPY) for each in value):
        return "list", {str(index): np.asarray(each) for index, each in enumerate(value)}
    if isinstance(value, dict) and all(
        isinstance(key, str) and isinstance(each, NUMPY) for key, each in value.items()
    ):
        return "dict", {key: np.asarray(each) for key, each in value.items()}
    return None, {}


def _rebuild(kind: str, arrays: Arrays) -> Any:
    if kind == "array":
        return arrays["0"]
    if kind == "list":
        return list(arrays.values())
    if kind == "record":
        return ArrayRecord({name: Array(array) for name, array in arrays.items()})
    return arrays


@dataclass(frozen=True)
class StartArguments:
    """What :meth:`flwr.serverapp.strategy.Strategy.start` was called with.

    Attributes:
        grid: Flower's grid.
        last: number of the last round.
        timeout: deadline of each phase in seconds.
        train_config: for the clients' train function.
        evaluate_config: for the clients' evaluate function.
        evaluate_fn: the server's own evaluation.

    Raises:
        ConfigurationError: lists all that is of another kind.
    """

    grid: Grid
    last: int
    timeout: float | None
    train_config: ConfigRecord
    evaluate_config: ConfigRecord
    evaluate_fn: EvaluateFn | None

    def __post_init__(self) -> None:
        rounds, seconds = self.last, self.timeout
        problems = []
        if isinstance(rounds, bool) or not isinstance(rounds, Integral) or rounds < 0:
            problems.append(f"num_rounds as a whole number of at least 0, got {rounds!r}")
        if seconds is not None and (
            isinstance(seconds, bool) or not isinstance(seconds, Real) or not seconds > 0
        ):
            problems.append(f"timeout in seconds above 0, or None for no deadline, got {seconds!r}")
        if problems:
            raise ConfigurationError(f"expected {'; expected '.join(problems)}")

    def ask(self, messages: Iterable[Message]) -> Iterable[Message]:
        """Send messages and wait for the replies until the deadline."""
        return self.grid.send_and_receive(messages, timeout=self.timeout)


def resume_rounds(
    strategy: Strategy, rounds: StartArguments, arrays: ArrayRecord, done: int
) -> ArrayRecord:
    """Evaluate the last complete round and run the ones after it, as Flower's own loop does.

    A checkpoint is written between a round's training and its evaluation, so the evaluation comes
    again: it changes no model. ``arrays`` is the model after round ``done``, and what is returned
    that after the last one, as Flower knows it.
    """
    for current in range(done, rounds.last + 1):
        logger.info("[ROUND %d/%d]", current, rounds.last)
        if current > done:
            asked = strategy.configure_train(current, arrays, rounds.train_config, rounds.grid)
            averaged, _ = strategy.aggregate_train(current, rounds.ask(asked))
            arrays = arrays if averaged is None else averaged
        asked = strategy.configure_evaluate(current, arrays, rounds.evaluate_config, rounds.grid)
        strategy.aggregate_evaluate(current, rounds.ask(asked))
        if rounds.evaluate_fn is not None:
            rounds.evaluate_fn(current, arrays)
    return arrays
