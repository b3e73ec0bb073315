"""Tokens of sentences, or images: what a study attacks, from a name or a path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fedsens.data import Dataset, load_dataset
from fedsens.errors import DataError


def load_samples(source: str, classes: int | None = None) -> Dataset:
    """Images as :func:`fedsens.data.load_dataset` reads them, or sentences of an ``.npz`` file.

    Sentences are an integer array ``x`` of token ids, (n, length), with ``y``, a label for each
    sentence, (n,), or for each token, (n, length), -100 where a token does not count.

    Args:
        source: name or path.
        classes: number of classes; None to find out.

    Returns:
        The samples; ``x`` is floating point for images and int64 for tokens.

    Raises:
        DataError: the sentences and labels do not fit each other.
    """
    if not (source.endswith(".npz") and Path(source).is_file()):
        return load_dataset(source, classes)
    with np.load(source, allow_pickle=False) as archive:
        x, y = (archive[name] if name in archive.files else np.empty(0) for name in ("x", "y"))
    if x.ndim != 2 or x.dtype.kind not in "iu":
        return load_dataset(source, classes)
    if y.dtype.kind not in "iu" or y.shape not in {x.shape[:1], x.shape} or not y.size:
        raise DataError(
            f"{source}: expected an integer label for each of {len(x)} sentences or each of their "
            f"tokens, got y of shape {y.shape} and type {y.dtype}; correct y"
        )
    if x.min() < 0:
        raise DataError(f"{source}: expected token ids from 0, got {x.min()}; correct x")
    labels = torch.from_numpy(y.astype(np.int64))
    return Dataset(
        torch.from_numpy(x.astype(np.int64)), labels, classes or int(labels.max().clamp_min(1)) + 1
    )
