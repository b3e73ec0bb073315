"""The Flower halves of fedsens: a mod for clients, a strategy for the server.

Beside it only what runs whole federations (bench, simulation) imports flwr.
"""

from __future__ import annotations

from fedsens.flower.install import install
from fedsens.flower.local import LocalGrid
from fedsens.flower.logs import log_through_flower
from fedsens.flower.mod import SelectiveEncryptionMod
from fedsens.flower.strategy import SelectiveEncryption

__all__ = [
    "LocalGrid",
    "SelectiveEncryption",
    "SelectiveEncryptionMod",
    "install",
    "log_through_flower",
]
