"""From a run to its checkpoints and back: what is saved, and what must agree to go on."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ConfigRecord, MetricRecord
from flwr.serverapp.strategy import Result, Strategy

from fedsens.config import FedSensConfig
from fedsens.errors import CheckpointError, FedSensError
from fedsens.flower.inner_state import KIND, InnerState, capture, restore
from fedsens.flower.session import Session
from fedsens.protocol.checkpoint import Checkpoint, CheckpointFolder, Figures, Progress
from fedsens.protocol.report import PhaseReport

logger = logging.getLogger(__name__)

THRESHOLD = "min_"  # such settings say how many clients must be there, not what is computed


@dataclass
class History:
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
        """Remember the conditions of the run; nothing is written yet.

        Args:
            config: the configuration, with a folder for checkpoints.
            inner: the inner strategy, before its first round.
            app_config: what else the result depends on.

        Raises:
            CheckpointError: the configuration names no folder.
        """
        if config.checkpoint_dir is None:
            raise CheckpointError("expected a folder for checkpoints, got none")
        self._folder = CheckpointFolder(config.checkpoint_dir)
        self._inner = inner
        self._settings = capture(inner)
        self._config = config.substance
        self._generation_at = config.generation_at
        self._app = {name: _as_json(value) for name, value in app_config.items()}

    def claim(self) -> None:
        """Make sure that a new run writes over no other run's checkpoints."""
        self._folder.claim()

    def save(
        self, server_round: int, session: Session, history: History, reports: list[PhaseReport]
    ) -> None:
        """Save the state after a round's training; a full disk does not end the run.

        Args:
            server_round: the round.
            session: keys, model and mask.
            history: the metrics so far.
            reports: the reports so far.
        """
        now = capture(self._inner)
        progress = Progress(
            round=server_round,
            fingerprint=session.keys.fingerprint,
            generation=session.keys.generation,
            reference=session.reference,
            experiment=session.experiment,
            config=self._config,
            app=self._app,
            strategy=type(self._inner).__name__,
            settings=_plain(self._settings),
            state=_changed(self._settings, now),
            train=_figures(history.train),
            evaluate=_figures(history.evaluate),
            central=_figures(history.central),
            reports=reports,
            random=_random_state(),
        )
        try:
            self._folder.save(Checkpoint(session.model, session.mask, progress, now.arrays))
        except FedSensError as error:
            logger.error(
                "round %d is not saved, the run goes on: %s; make room in %s",
                server_round,
                error,
                self._folder.path,
            )

    def latest(self) -> Checkpoint:
        """The newest intact checkpoint, if it belongs to this run.

        Returns:
            The checkpoint.

        Raises:
            CheckpointError: there is none, or options differ from those it was made with.
        """
        checkpoint = self._folder.latest()
        then, now = checkpoint.progress, _plain(self._settings)
        name = type(self._inner).__name__
        problems = [] if then.strategy == name else [f"strategy was {then.strategy}, is {name}"]
        problems += _differences("fedsens.", then.config, self._config)
        problems += _differences("", then.app, self._app)
        problems += _differences("strategy's ", _compared(then.settings), _compared(now))
        generation = self._generation_at(then.round)
        if generation != then.generation:
            problems.append(
                f"fedsens.rotate-at asks for {generation} rotations up to round {then.round}, the "
                f"run had {then.generation}"
            )
        if problems:
            raise CheckpointError(
                f"expected the options of the run that is saved in {self._folder.path}, got "
                f"others: {'; '.join(problems)}; use those of the saved run, or start anew in "
                "another folder"
            )
        return checkpoint

    def restore(self, checkpoint: Checkpoint) -> History:
        """Set the inner strategy and the sampling of nodes to where they were.

        Args:
            checkpoint: the checkpoint.

        Returns:
            The metrics up to it.
        """
        progress = checkpoint.progress
        restore(self._inner, InnerState(progress.state, checkpoint.inner))
        if progress.random is not None:
            version, words, gauss = progress.random
            random.setstate((version, tuple(words), gauss))
        return History(*map(_records, (progress.train, progress.evaluate, progress.central)))


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
