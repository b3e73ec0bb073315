"""Readers of data sets: the registry, and the formats that need no further package but NumPy.

A reader is one decorated function::

    @register_reader("a .pt file", claims=lambda source: source.endswith(".pt"))
    def read_pt(source: str) -> RawImages: ...

It opens its format and checks the file; shapes, types and labels are the caller's work. Those here
read archives, CIFAR-10, IDX, and the digits that scikit-learn brings.
"""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from fedsens._extensions import Registry
from fedsens._imports import require
from fedsens.data._dataset import Dataset, RawImages
from fedsens.errors import DataError

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
    """The first reader that claims a name or path; the error lists the formats."""
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


# One label byte and 3072 pixel bytes: a plane each of red, green and blue.
CIFAR10_RECORD = 1 + 3 * 32 * 32
IDX_IMAGES = ("-images-idx3-ubyte", "-images.idx3-ubyte")


@register_reader("'digits'", claims=lambda source: source == "digits")
def read_digits(source: str) -> RawImages:
    """Read the 1797 images, whose grey levels 0 to 16 become [0, 1]."""
    digits = require("sklearn.datasets").load_digits()
    return RawImages((digits.images / 16).astype(np.float32), digits.target, classes=10)


def _is_npz(source: str) -> bool:
    return source.endswith(".npz") and Path(source).is_file()


@register_reader("an .npz file with x and y", claims=_is_npz)
def read_npz(source: str) -> RawImages:
    """Read ``x``, ``y`` and, if there, ``classes``: a number, or one name for each class."""
    if not zipfile.is_zipfile(source):
        raise DataError(
            f"{source}: expected an .npz archive, got another kind of file or a truncated one; "
            "write it with numpy.savez"
        )
    try:
        # Python objects are pickles, which run code when they are read.
        with np.load(source, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{source}: expected readable arrays of numbers, got {error}; "
            "write it again with numpy.savez, without arrays of objects"
        ) from error
    if missing := {"x", "y"} - arrays.keys():
        raise DataError(
            f"{source}: expected arrays x and y, got {sorted(arrays)} without "
            f"{' and '.join(sorted(missing))}; name them so in numpy.savez"
        )
    return RawImages(arrays["x"], arrays["y"], _classes_in(arrays.get("classes"), source))


def _classes_in(classes: NDArray[Any] | None, source: str) -> int | None:
    if classes is None:
        return None
    if classes.ndim == 1 and classes.dtype.kind == "U":
        return len(classes)
    if classes.ndim == 0 and classes.dtype.kind in "iu":
        return int(classes)
    raise DataError(
        f"{source}: expected classes to be a number or a list of names, got shape "
        f"{classes.shape} of type {classes.dtype}; correct it or leave it out"
    )


def _cifar10_files(source: str) -> list[Path]:
    path = Path(source)
    if path.is_file():
        return [path] if path.suffix == ".bin" else []
    return sorted(path.glob("data_batch_*.bin")) + sorted(path.glob("test_batch.bin"))


@register_reader(
    "a CIFAR-10 binary .bin file or a folder of them",
    claims=lambda source: bool(_cifar10_files(source)),
)
def read_cifar10(source: str) -> RawImages:
    """Read one file, or the data batches and then the test batch of a folder."""
    records = np.concatenate([_records(path) for path in _cifar10_files(source)])
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return RawImages(images, records[:, 0], classes=10)


def _records(path: Path) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    content = np.fromfile(path, dtype=np.uint8)
    if content.size == 0 or content.size % CIFAR10_RECORD:
        raise DataError(
            f"{path}: expected a whole number of {CIFAR10_RECORD}-byte records, got {content.size} "
            f"bytes, {content.size % CIFAR10_RECORD} too many; copy or download the file again"
        )
    return content.reshape(-1, CIFAR10_RECORD)


def _idx_files(source: str) -> list[Path]:
    path = Path(source)
    candidates = sorted(path.iterdir()) if path.is_dir() else [path]
    return [
        file
        for file in candidates
        if file.is_file() and file.name.removesuffix(".gz").endswith(IDX_IMAGES)
    ]


@register_reader(
    "an IDX file *-images-idx3-ubyte or a folder of them, also .gz",
    claims=lambda source: bool(_idx_files(source)),
)
def read_idx(source: str) -> RawImages:
    """Read one pair of files of images and labels, or every pair of a folder by its names.

    Layout (http://yann.lecun.com/exdb/mnist): two zero bytes, one byte for the type (8 is unsigned
    byte), one for the number of dimensions, each dimension as a big-endian uint32, then the values.

    Raises:
        DataError: a file is missing, damaged or no IDX file, or a pair does not match.
    """
    pairs = [_idx_pair(path) for path in _idx_files(source)]
    if len({images.shape[1:] for images, _ in pairs}) > 1:
        raise DataError(
            f"{source}: expected images of one size, got "
            f"{[images.shape[1:] for images, _ in pairs]}; give one file instead of the folder"
        )
    x, y = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))
    return RawImages(x, y)


def _idx_pair(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    stem = path.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    labels = next(
        (file for file in (path.with_name(stem), path.with_name(f"{stem}.gz")) if file.is_file()),
        None,
    )
    if labels is None:
        raise DataError(f"{path}: expected its labels in {stem}, got no such file; put it there")
    x, y = _idx_array(path, dimensions=3), _idx_array(labels, dimensions=1)
    if len(x) != len(y):
        raise DataError(
            f"{path}: expected as many labels as images, got {len(y)} labels and {len(x)} images; "
            "check that both files come from the same export"
        )
    return x, y


def _idx_array(path: Path, dimensions: int) -> NDArray[np.uint8]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _parse_idx(cast(IO[bytes], file), path, dimensions)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: expected a whole gzip file, got {error}; copy or download it again"
        ) from error


def _parse_idx(file: IO[bytes], path: Path, dimensions: int) -> NDArray[np.uint8]:
    magic = bytes((0, 0, 8, dimensions))
    header = file.read(4 + 4 * dimensions)
    if header[:4] != magic or len(header) < 4 + 4 * dimensions:
        raise DataError(
            f"{path}: expected an IDX header {magic.hex()} with {dimensions} sizes, got "
            f"{header.hex()}; check that it is the right file, and unpacked if it has no .gz"
        )
    shape = tuple(int(size) for size in np.frombuffer(header, dtype=">u4", offset=4))
    values = _read_exactly(file, prod(shape), path)
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)


def _read_exactly(file: IO[bytes], size: int, path: Path) -> bytes:
    values = file.read(size + 1)
    if len(values) != size:
        got = f"only {len(values)}" if len(values) < size else "more"
        raise DataError(
            f"{path}: expected {size} values after the header, got {got}; "
            "copy or download the file again"
        )
    return values
