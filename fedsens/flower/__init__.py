"""The Flower halves of fedsens: a mod for clients, a strategy for the server.

Names are imported when first used, so that the server's process loads no code that can hold a key,
and a client's none of the server's. Beside this package only what runs whole federations (bench,
simulation) imports flwr.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsens.flower._logs import log_through_flower
    from fedsens.flower._mod import SelectiveEncryptionMod, install
    from fedsens.flower._records import size_of
    from fedsens.flower._strategy import SelectiveEncryption
    from fedsens.flower._testing import LocalGrid

_HOME = {
    "LocalGrid": "fedsens.flower._testing",
    "SelectiveEncryption": "fedsens.flower._strategy",
    "SelectiveEncryptionMod": "fedsens.flower._mod",
    "install": "fedsens.flower._mod",
    "log_through_flower": "fedsens.flower._logs",
    "size_of": "fedsens.flower._records",
}

__all__ = [
    "LocalGrid",
    "SelectiveEncryption",
    "SelectiveEncryptionMod",
    "install",
    "log_through_flower",
    "size_of",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fedsens.flower' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
