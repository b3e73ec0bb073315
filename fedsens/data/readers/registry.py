"""The registry of readers: a reader is one decorated function.

::

    @register_reader("a .pt file", claims=lambda source: source.endswith(".pt"))
    def read_pt(source: str) -> RawImages: ...

A reader opens its format and checks the file; shapes, types and labels are the caller's work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedsens.data.dataset import RawImages
from fedsens.errors import DataError
from fedsens.extensions import Registry

Claims = Callable[[str], bool]
Read = Callable[[str], RawImages]


@dataclass(frozen=True)
class Reader:
    """A registered format.

    Attributes:
        description: what it reads, for the error text that lists the formats.
        claims: whether a name or path looks like this format.
        read: reads it.
    """

    description: str
    claims: Claims
    read: Read


_readers = Registry[Reader]("data format", "fedsens.readers", DataError)


def register_reader(description: str, *, claims: Claims) -> Callable[[Read], Read]:
    """Register the decorated function as the reader of a format.

    Args:
        description: what it reads, in a few words.
        claims: whether a name or path looks like this format; asked in order of registration.

    Returns:
        The decorator; it returns the function unchanged.
    """

    def register(read: Read) -> Read:
        _readers.add(description, Reader(description, claims, read), read)
        return read

    return register


def find_reader(source: str) -> Reader:
    """Choose the reader of a data set by what its name or path is.

    Args:
        source: the name or path.

    Returns:
        The first reader that claims it.

    Raises:
        DataError: no reader does; the text lists the formats.
    """
    for reader in _readers.values():
        if reader.claims(source):
            return reader
    formats = "; ".join(_readers)
    raise DataError(
        f"expected a data set ({formats}), got {source!r}, which is none of them or not there; "
        "check the path, or name the module of a reader of yours: --import MODULE, or "
        "fedsens.import in a run config"
    )
