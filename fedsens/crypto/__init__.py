"""The codec: real vectors to ciphertexts that add up and that only a sum of secrets opens.

Every client encrypts under a one-time secret of its own with public polynomials that all share, so
ciphertexts add up although their secrets differ, and the sum opens under the sum of the secrets
alone: key-additive RLWE, as in SASH (arXiv 2111.12321), ACORN (ePrint 2022/1461), OPA (arXiv
2410.22303) and Willow (ePrint 2024/936), here with CKKS (Cheon, Kim, Kim and Song 2017) as the
encoding.

Names are imported when first used: :class:`Aggregator` and everything that reads batches need
NumPy only; :class:`Encryptor` and :class:`Decryptor` load TenSEAL, and nothing else here does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsens._imports import attach
from fedsens.crypto._aggregator import Aggregator
from fedsens.crypto._encoding import NameOf, check_range
from fedsens.crypto._parameters import MAP_PARAMETERS, PRESETS, CkksParameters, Opens, PresetName
from fedsens.crypto._secret import OneTimeSecret
from fedsens.crypto._wire import Batch, parse_batch, residues

if TYPE_CHECKING:
    from fedsens.crypto._decryptor import Decryptor
    from fedsens.crypto._encryptor import Encryptor

__all__ = [
    "MAP_PARAMETERS",
    "PRESETS",
    "Aggregator",
    "Batch",
    "CkksParameters",
    "Decryptor",
    "Encryptor",
    "NameOf",
    "OneTimeSecret",
    "Opens",
    "PresetName",
    "check_range",
    "parse_batch",
    "residues",
]

__getattr__, __dir__ = attach(__name__, __file__, __all__)
