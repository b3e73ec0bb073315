"""The logs of Flower and fedsens while something is measured."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_flower(wanted: int = logging.WARNING) -> Iterator[None]:
    """Flower and fedsens log every round, which is no news here."""
    loggers = [logging.getLogger(name) for name in ("flwr", "fedsens")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(wanted)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
