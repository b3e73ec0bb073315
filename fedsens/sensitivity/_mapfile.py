"""Files of sensitivity maps: safetensors with a small header, no pickle."""

from __future__ import annotations

import json
import os
from typing import Any

import torch

from fedsens.errors import SensitivityError
from fedsens.files import Arrays, read_checked, write_checked
from fedsens.sensitivity._map import SensitivityMap

#: The type in the header of a map's file.
MAP_TYPE = "fedsens sensitivity map"
PARTS = ("sum.", "half.0.", "half.1.")  # prefixes of the whole map and of its halves
TYPES = {torch.float32, torch.float64}


def save_map(smap: SensitivityMap, path: str | os.PathLike[str]) -> None:
    """Write a map with its metadata and its halves, readable by its owner only.

    A map tells about the data that it was made from (an embedding's rows that are not zero are
    the words that occur): keep the file as the data is kept.

    Args:
        smap: the map.
        path: the file; replaced in one step if it exists.

    Raises:
        SensitivityError: the metadata hold something that JSON cannot.
    """
    maps = [smap, *(smap.halves or ())]
    header = {
        "type": MAP_TYPE,
        "version": 1,
        "parameters": list(smap.sums),
        "parts": [{"count": part.count, "meta": dict(part.meta)} for part in maps],
    }
    try:
        text = json.dumps(header, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SensitivityError(f"expected metadata that fit into JSON, got {error}") from None
    tensors = {
        prefix + name: value.numpy()
        for prefix, part in zip(PARTS, maps, strict=False)
        for name, value in part.sums.items()
    }
    write_checked(path, text, tensors)


def load_map(path: str | os.PathLike[str]) -> SensitivityMap:
    """Read a file of :func:`save_map`.

    Args:
        path: the file.

    Returns:
        The map.

    Raises:
        SensitivityError: the file is not there or damaged, holds no map, or one with sums that
            are negative, NaN or infinite.
    """
    text, tensors = read_checked(path, MAP_TYPE, SensitivityError)
    try:
        header = json.loads(text)
        if (header["type"], header["version"]) != (MAP_TYPE, 1):
            raise SensitivityError(
                f"expected a {MAP_TYPE} of version 1 in {path}, got {header['type']!r} of "
                f"version {header['version']!r}"
            )
        return _whole(header, tensors)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise SensitivityError(
            f"expected an intact {MAP_TYPE} in {path}, got {type(error).__name__} on reading it; "
            "make it again"
        ) from None


def _whole(header: dict[str, Any], tensors: Arrays) -> SensitivityMap:
    whole, *halves = (
        _part(header["parameters"], part, tensors, prefix)
        for part, prefix in zip(header["parts"], PARTS, strict=False)
    )
    if tensors or len(header["parts"]) not in {1, 3}:
        raise ValueError("more than the parts of a map")
    if halves:
        return SensitivityMap(whole.sums, whole.count, whole.meta, (halves[0], halves[1]))
    return whole


def _part(names: list[str], part: dict[str, Any], tensors: Arrays, prefix: str) -> SensitivityMap:
    """One of the maps in a file, whose tensors are taken out."""
    sums = {name: torch.from_numpy(tensors.pop(prefix + name)) for name in names}
    if {value.dtype for value in sums.values()} - TYPES:
        raise ValueError("sums of another type")
    return SensitivityMap(sums, part["count"], part["meta"])
