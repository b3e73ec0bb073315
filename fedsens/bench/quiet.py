"""Flower's log while something is measured."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_flower(wanted: int = logging.WARNING) -> Iterator[None]:
    """Flower logs every round, which is no news here."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(wanted)
    try:
        yield
    finally:
        logger.setLevel(level)
