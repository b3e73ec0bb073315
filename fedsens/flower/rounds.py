"""The rounds of a resumed run: Flower's loop, from the middle."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

logger = logging.getLogger(__name__)

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


@dataclass(frozen=True)
class Rounds:
    """What :meth:`flwr.serverapp.strategy.Strategy.start` was called with.

    Attributes:
        grid: Flower's grid.
        last: number of the last round.
        timeout: deadline of each phase in seconds.
        train_config: for the clients' train function.
        evaluate_config: for the clients' evaluate function.
        evaluate_fn: the server's own evaluation.
    """

    grid: Grid
    last: int
    timeout: float
    train_config: ConfigRecord
    evaluate_config: ConfigRecord
    evaluate_fn: EvaluateFn | None

    def ask(self, messages: Iterable[Message]) -> Iterable[Message]:
        """Send messages and wait for the replies until the deadline."""
        return self.grid.send_and_receive(messages, timeout=self.timeout)


def go_on(strategy: Strategy, rounds: Rounds, arrays: ArrayRecord, done: int) -> ArrayRecord:
    """Evaluate the last complete round and run the ones after it, as Flower's own loop does.

    A checkpoint is written between a round's training and its evaluation, so the evaluation comes
    again: it changes no model.

    Args:
        strategy: the strategy, whose state is that after the round's training.
        rounds: what to run.
        arrays: the model after that round.
        done: the last complete round.

    Returns:
        The model after the last round, as Flower knows it.
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
