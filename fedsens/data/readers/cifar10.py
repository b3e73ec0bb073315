"""CIFAR-10's binary version: records of one label byte and 3072 pixel bytes (red, green, blue)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedsens.data.dataset import RawImages
from fedsens.data.readers.registry import register_reader
from fedsens.errors import DataError

RECORD = 1 + 3 * 32 * 32


def _files(source: str) -> list[Path]:
    path = Path(source)
    if path.is_file():
        return [path] if path.suffix == ".bin" else []
    return sorted(path.glob("data_batch_*.bin")) + sorted(path.glob("test_batch.bin"))


@register_reader(
    "a CIFAR-10 binary .bin file or a folder of them", claims=lambda source: bool(_files(source))
)
def read_cifar10(source: str) -> RawImages:
    """Read one file, or the data batches and then the test batch of a folder."""
    records = np.concatenate([_records(path) for path in _files(source)])
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return RawImages(images, records[:, 0], classes=10)


def _records(path: Path) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    content = np.fromfile(path, dtype=np.uint8)
    if content.size == 0 or content.size % RECORD:
        raise DataError(
            f"{path}: expected a whole number of {RECORD}-byte records, got {content.size} bytes, "
            f"{content.size % RECORD} too many; copy or download the file again"
        )
    return content.reshape(-1, RECORD)
