"""fedsens: selective homomorphic encryption for federated learning with Flower.

Names are imported when first used, so that the command line and the codec's worker processes
start without loading torch. The Flower halves live in :mod:`fedsens.flower`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

_HOME = {
    "Aggregator": "fedsens.crypto",
    "CkksParameters": "fedsens.crypto",
    "Decryptor": "fedsens.crypto",
    "EncryptionMask": "fedsens.mask",
    "Encryptor": "fedsens.crypto",
    "FedSensConfig": "fedsens.config",
    "FedSensError": "fedsens.errors",
    "FederationKey": "fedsens.keys",
    "OneTimeSecret": "fedsens.crypto",
    "ParameterLayout": "fedsens.layout",
    "SensitivityMap": "fedsens.sensitivity",
    "reference_map": "fedsens.sensitivity",
    "select_mask": "fedsens.mask",
    "sensitivity_map": "fedsens.sensitivity",
}

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


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fedsens' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
