"""A LeNet on scikit-learn's digits, stopped after some numbers of epochs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn.functional import interpolate

from client.partition import load_partition
from client.seeding import seeded
from client.task import train
from fedsens.bench._models import lenet
from fedsens.data import Dataset

CPU = torch.device("cpu")
SIZE = 28  # pixels, of MNIST


def load_images(seed: int, limit: int | None = None) -> tuple[Dataset, Dataset]:
    """The digits, enlarged from 8 x 8 to 28 x 28 pixels.

    Args:
        seed: of the split.
        limit: most training images; None for all, four fifths of 1797.

    Returns:
        The training images, in random order, and a fifth of all to test on.
    """
    train_set, test_set = load_partition("digits", 0, 1, seed=seed)
    chosen = train_set.subset(np.arange(len(train_set))[:limit])
    return _enlarged(chosen), _enlarged(test_set)


def stages(train_set: Dataset, seed: int, epochs: Sequence[int]) -> Iterator[tuple[int, nn.Module]]:
    """Train with the app's defaults: SGD, batches of 16, learning rate 0.02, momentum 0.9.

    Args:
        train_set: images of 28 x 28 pixels.
        seed: of the initial weights and of the order of the images.
        epochs: where to stop, in increasing order; 0 is the initial model.

    Yields:
        The number of epochs, and the model, which the next stage trains further.
    """
    with seeded(seed, CPU):
        model = lenet(train_set.x.shape[1], 2, train_set.classes)
    done = 0
    for stop in epochs:
        if stop > done:
            train(
                model,
                train_set,
                epochs=stop - done,
                batch_size=16,
                learning_rate=0.02,
                momentum=0.9,
                seed=1000 * seed + done,
                device=CPU,
            )
        done = stop
        yield stop, model


def _enlarged(images: Dataset) -> Dataset:
    x = interpolate(images.x, size=(SIZE, SIZE), mode="bilinear")
    return Dataset(x, images.y, images.classes)
