"""What a study attacks unless a user brings it: samples from a name or path, and a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

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


def leaking_lenet(channels: int, size: int, classes: int, seed: int = 0) -> nn.Module:
    """The LeNet of DLG (arXiv 1906.08935): strided convolutions, sigmoids, uniform weights.

    88,648 parameters for 3 channels, 32 pixels and 100 classes, as in FedML-HE.

    Args:
        channels: of an image.
        size: its height and width in pixels.
        classes: number of outputs.
        seed: of the weights.

    Returns:
        The model, untrained.
    """
    layers: list[nn.Module] = []
    side, inputs = size, channels
    for stride in (2, 2, 1, 1):
        layers += [nn.Conv2d(inputs, 12, 5, padding=2, stride=stride), nn.Sigmoid()]
        side, inputs = -(-side // stride), 12
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(12 * side * side, classes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.5, 0.5, generator=generator)
    return model
