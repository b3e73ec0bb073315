"""Hugging Face data sets: from the hub, saved to disk, or as parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsens._imports import require, require_datasets
from fedsens.data._dataset import RawImages
from fedsens.data._readers import register_reader
from fedsens.errors import DataError

HUB = "hf:"
IMAGES = ("image", "img", "x")
LABELS = ("label", "fine_label", "y")
SAVED = ("state.json", "dataset_dict.json")


def _parquet_files(source: str) -> list[Path]:
    path = Path(source)
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    return [file for file in files if file.is_file() and file.suffix == ".parquet"]


def _claims(source: str) -> bool:
    saved = any((Path(source) / name).is_file() for name in SAVED)
    return source.startswith(HUB) or saved or bool(_parquet_files(source))


@register_reader("hf:owner/name, a save_to_disk folder or parquet", claims=_claims)
def read_huggingface(source: str) -> RawImages:
    """Read the image column and the label column of all splits."""
    table = _open(source)
    if not len(table):
        raise DataError(f"{source}: expected at least one row, got none; check the split")
    image, label = _column(table, IMAGES, source), _column(table, LABELS, source)
    labels = np.asarray(table.with_format("numpy")[label][:])
    decode = _is_pictures(table.features[image])
    images = _decode(table, image, source) if decode else _numbers(table, image)
    return RawImages(images, labels, getattr(table.features[label], "num_classes", None))


def _open(source: str) -> Any:
    """Open the source as one ``datasets.Dataset``."""
    datasets, parquet = require_datasets(), require("pyarrow.parquet")
    failures = (OSError, ValueError, KeyError, TypeError, datasets.exceptions.DatasetsError)
    try:
        if source.startswith(HUB):
            name, _, split = source.removeprefix(HUB).partition("@")
            found = datasets.load_dataset(name, split=split or None)
        elif files := _parquet_files(source):
            # Not Dataset.from_parquet, which would leave a copy of the data in the hub's cache.
            tables = [parquet.ParquetFile(file).read() for file in files]
            found = datasets.Dataset(require("pyarrow").concat_tables(tables))
        else:
            found = datasets.load_from_disk(source)
    except failures as error:
        raise DataError(
            f"{source}: expected a data set that Hugging Face datasets can open, got "
            f"{type(error).__name__}: {error}; check the name, the files and the connection"
        ) from error
    return datasets.concatenate_datasets(list(found.values())) if isinstance(found, dict) else found


def _column(table: Any, names: tuple[str, ...], source: str) -> str:
    for name in names:
        if name in table.column_names:
            return name
    raise DataError(
        f"{source}: expected a column named {' or '.join(names)}, got "
        f"{', '.join(table.column_names)}; rename the column with rename_column"
    )


def _is_pictures(feature: Any) -> bool:
    """Whether a column holds compressed pictures; a dict is how bare parquet stores them."""
    return isinstance(feature, dict) or type(feature).__name__ == "Image"


def _decode(table: Any, column: str, source: str) -> NDArray[Any]:
    """Decode a column of compressed pictures, all grey or all colour, and of one size."""
    try:
        pictures = table.cast_column(column, require_datasets().Image())[column]
        images = [(picture.mode, np.asarray(picture)) for picture in pictures]
    except (OSError, SyntaxError, ValueError, TypeError, AttributeError, ImportError) as error:
        raise DataError(
            f"{source}: expected a picture in every row, got {type(error).__name__}: {error}; "
            "remove the row, or install the pillow package"
        ) from error
    kinds = sorted({(mode, array.shape) for mode, array in images})
    if len(kinds) > 1 or kinds[0][0] not in {"L", "RGB"}:
        raise DataError(
            f"{source}: expected pictures of one size, all of mode L or all of mode RGB, got "
            f"{kinds[:4]}; convert and resize them"
        )
    return np.stack([array for _, array in images])


def _numbers(table: Any, column: str) -> NDArray[Any]:
    """Read a column of nested lists or array features."""
    values = np.asarray(table.with_format("numpy")[column][:])
    feature = table.features[column]
    while hasattr(feature, "feature"):
        feature = feature.feature
    # The numpy format widens every integer to int64; bytes are told apart by the declared type.
    return values.astype(np.uint8) if feature.dtype == "uint8" else values
