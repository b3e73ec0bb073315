"""NumPy ``.npz`` archives with the arrays ``x`` and ``y``, and optionally ``classes``."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsens.data.dataset import RawImages
from fedsens.data.readers.registry import register_reader
from fedsens.errors import DataError


def _claims(source: str) -> bool:
    return source.endswith(".npz") and Path(source).is_file()


@register_reader("an .npz file with x and y", claims=_claims)
def read_npz(source: str) -> RawImages:
    """Read ``x``, ``y`` and, if there, ``classes``: a number, or one name for each class.

    Raises:
        DataError: not an archive, damaged, an array missing, or one of Python objects.
    """
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
    return RawImages(arrays["x"], arrays["y"], _count(arrays.get("classes"), source))


def _count(classes: NDArray[Any] | None, source: str) -> int | None:
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
