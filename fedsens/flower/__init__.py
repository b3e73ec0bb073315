"""The Flower halves of fedsens: a mod for clients, a strategy for the server.

Names are imported when first used, so that the server's process loads no code that can hold a key.
Beside this package only what runs whole federations (bench, simulation) imports flwr.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsens._imports import attach

if TYPE_CHECKING:
    from fedsens.flower._local_grid import LocalGrid
    from fedsens.flower._logs import log_through_flower
    from fedsens.flower._mod import SelectiveEncryptionMod, install
    from fedsens.flower._records import size_of
    from fedsens.flower._strategy import SelectiveEncryption

__all__ = [
    "LocalGrid",
    "SelectiveEncryption",
    "SelectiveEncryptionMod",
    "install",
    "log_through_flower",
    "size_of",
]

__getattr__, __dir__ = attach(__name__, __file__, __all__)
