"""The CKKS codec: parameters, keys, and the three roles that encrypt, add and decrypt.

This package is the only importer of TenSEAL.
"""

from fedsens.crypto.aggregator import Aggregator
from fedsens.crypto.decryptor import Decryptor
from fedsens.crypto.encryptor import Encryptor
from fedsens.crypto.keys import SecretKey, generate_key
from fedsens.crypto.params import MAP_PARAMETERS, CkksParameters

__all__ = [
    "MAP_PARAMETERS",
    "Aggregator",
    "CkksParameters",
    "Decryptor",
    "Encryptor",
    "SecretKey",
    "generate_key",
]
