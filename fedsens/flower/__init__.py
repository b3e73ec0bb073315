"""The Flower halves of fedsens: a mod for clients, a strategy for the server.

This package is the only importer of flwr.
"""

from __future__ import annotations

import logging

from fedsens.flower.install import install
from fedsens.flower.local import LocalGrid
from fedsens.flower.mod import SelectiveEncryptionMod
from fedsens.flower.strategy import SelectiveEncryption

__all__ = [
    "LocalGrid",
    "SelectiveEncryption",
    "SelectiveEncryptionMod",
    "install",
    "log_through_flower",
]


def log_through_flower() -> None:
    """Show fedsens's log lines among Flower's; an app calls this once, the library never does."""
    logger = logging.getLogger("fedsens")
    logger.parent = logging.getLogger("flwr")
    logger.setLevel(logging.INFO)
