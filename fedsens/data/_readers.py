"""The registry of readers: a reader is one decorated function.

::

    @register_reader("a .pt file", claims=lambda source: source.endswith(".pt"))
    def read_pt(source: str) -> RawImages: ...

A reader opens its format and checks the file; shapes, types and labels are the caller's work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedsens.data._dataset import Dataset, RawImages
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
    """The first reader that claims a name or path.

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


def load_dataset(source: str = "digits", classes: int | None = None) -> Dataset:
    """Read all labelled images of a data set.

    Every split that a folder holds is pooled, since each client sets its own test images aside.
    See :meth:`fedsens.data.Dataset.from_raw` for how pixels are scaled. What is there but cannot
    be read as what it claims to be, or is not there, raises :class:`~fedsens.errors.DataError`; a
    format whose package is not installed, :class:`~fedsens.errors.ConfigurationError`.

    Args:
        source: one of

            - ``digits``: scikit-learn's 1797 bundled 8x8 digits;
            - an IDX images file, its labels file beside it, or a folder of such pairs; .gz too;
            - a CIFAR-10 binary file, or a folder of them;
            - an ``.npz`` file with ``x`` and ``y``, and optionally ``classes`` (number or names);
            - a folder of Hugging Face ``save_to_disk``, or parquet (a file or a folder);
            - ``hf:owner/name`` or ``hf:owner/name@split`` of the Hugging Face hub.
        classes: number of classes; None or 0 to find out. Clients whose own files may lack a
            class must all give it, as the highest label says too little then.

    Returns:
        The data set.
    """
    raw = find_reader(source).read(source)
    return Dataset.from_raw(raw, source, classes)
