"""fedsens: selective homomorphic encryption for federated learning with Flower.

Names are imported when first used, so that the command line and the codec's worker processes
start without loading torch. The Flower halves live in :mod:`fedsens.flower`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsens._imports import attach

if TYPE_CHECKING:
    from fedsens.config import FedSensConfig
    from fedsens.crypto import (
        Aggregator,
        CkksParameters,
        Decryptor,
        Encryptor,
        OneTimeSecret,
    )
    from fedsens.errors import FedSensError
    from fedsens.keys import FederationKey
    from fedsens.layout import ParameterLayout
    from fedsens.mask import EncryptionMask, select_mask
    from fedsens.sensitivity import SensitivityMap, reference_map, sensitivity_map

__version__ = "0.1.0"

__all__ = [
    "Aggregator",
    "CkksParameters",
    "Decryptor",
    "EncryptionMask",
    "Encryptor",
    "FedSensConfig",
    "FedSensError",
    "FederationKey",
    "OneTimeSecret",
    "ParameterLayout",
    "SensitivityMap",
    "__version__",
    "reference_map",
    "select_mask",
    "sensitivity_map",
]

__getattr__, __dir__ = attach(__name__, __file__, __all__)
