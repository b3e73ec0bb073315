"""IDX files as MNIST and its relatives have them: images and labels in a pair of files.

Layout (http://yann.lecun.com/exdb/mnist): two zero bytes, one byte for the type (8 is unsigned
byte), one for the number of dimensions, each dimension as a big-endian uint32, then the values.
"""

from __future__ import annotations

import gzip
import zlib
from math import prod
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from fedsens.data.dataset import RawImages
from fedsens.data.readers.registry import register_reader
from fedsens.errors import DataError

IMAGES = ("-images-idx3-ubyte", "-images.idx3-ubyte")


def _image_files(source: str) -> list[Path]:
    path = Path(source)
    candidates = sorted(path.iterdir()) if path.is_dir() else [path]
    return [
        file
        for file in candidates
        if file.is_file() and file.name.removesuffix(".gz").endswith(IMAGES)
    ]


@register_reader(
    "an IDX file *-images-idx3-ubyte or a folder of them, also .gz",
    claims=lambda source: bool(_image_files(source)),
)
def read_idx(source: str) -> RawImages:
    """Read one pair of files, or every pair of a folder in the order of the names.

    Raises:
        DataError: a file is missing, damaged or no IDX file, or a pair does not match.
    """
    pairs = [_read_pair(path) for path in _image_files(source)]
    if len({images.shape[1:] for images, _ in pairs}) > 1:
        raise DataError(
            f"{source}: expected images of one size, got "
            f"{[images.shape[1:] for images, _ in pairs]}; give one file instead of the folder"
        )
    x, y = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))
    return RawImages(x, y)


def _read_pair(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    stem = path.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    labels = next(
        (file for file in (path.with_name(stem), path.with_name(f"{stem}.gz")) if file.is_file()),
        None,
    )
    if labels is None:
        raise DataError(f"{path}: expected its labels in {stem}, got no such file; put it there")
    x, y = _read_array(path, dimensions=3), _read_array(labels, dimensions=1)
    if len(x) != len(y):
        raise DataError(
            f"{path}: expected as many labels as images, got {len(y)} labels and {len(x)} images; "
            "check that both files come from the same export"
        )
    return x, y


def _read_array(path: Path, dimensions: int) -> NDArray[np.uint8]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _parse(cast(IO[bytes], file), path, dimensions)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: expected a whole gzip file, got {error}; copy or download it again"
        ) from error


def _parse(file: IO[bytes], path: Path, dimensions: int) -> NDArray[np.uint8]:
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
