"""Trials one after another, within a time budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from fedsens.audit.study import Study
from fedsens.audit.trial import Outcome, Trial


def run_trials(
    study: Study,
    trials: Sequence[Trial],
    done: Callable[[Outcome, Tensor], Any] = lambda outcome, found: None,
    minutes: float = 0.0,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Outcome]:
    """Run trials one after another.

    Args:
        study: the study.
        trials: what to try.
        done: called with each outcome and reconstruction.
        minutes: of wall-clock time after which no trial is begun; 0 sets no limit.
        clock: the time in seconds.

    Yields:
        The outcomes.
    """
    end = clock() + 60 * minutes if minutes else float("inf")
    for trial in trials:
        if clock() >= end:
            return
        found, seconds = study.attack(trial)
        outcome = study.judge(trial, found, seconds)
        done(outcome, found)
        yield outcome
