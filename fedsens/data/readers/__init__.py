"""The formats that a data set can have: one module, and one decorated function, for each."""

from fedsens.data.readers import cifar10, digits, huggingface, idx, npz
from fedsens.data.readers.registry import Reader, find_reader, register_reader

__all__ = [
    "Reader",
    "cifar10",
    "digits",
    "find_reader",
    "huggingface",
    "idx",
    "npz",
    "register_reader",
]
