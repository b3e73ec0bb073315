"""Which images each client of a simulation holds, and how it splits them."""

from __future__ import annotations

import math
import warnings
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedsens._imports import require, require_datasets
from fedsens.data import Dataset, load_dataset
from fedsens.errors import ConfigurationError, DataError

Indices = NDArray[np.int64]

_load_once = lru_cache(maxsize=1)(load_dataset)


def load_partition(
    source: str,
    partition_id: int,
    num_partitions: int,
    *,
    alpha: float = 1.0,
    seed: int = 0,
    test_fraction: float = 0.2,
    classes: int | None = None,
) -> tuple[Dataset, Dataset]:
    """Load one client's images, split into a train and a test part.

    One process serves many clients in a simulation, so the data set and the partition are kept
    for the next call; the two parts are copies, free to be changed. A client that has a data set
    of its own is the only one of its partition: ``num_partitions`` is 1 and nothing is drawn.
    Data that cannot be read raises :class:`~fedsens.errors.DataError`, and so do fewer than the
    two images that a train and a test part need.

    Args:
        source: name or path for :func:`fedsens.data.load_dataset`.
        partition_id: which client, from 0.
        num_partitions: how many clients share the data set.
        alpha: label skew, see :func:`partition_indices`.
        seed: of the partition and of the split.
        test_fraction: share of the client's images in the test part, between 0 and 1.
        classes: number of classes; None or 0 to find out from the data set.

    Returns:
        The train part and the test part, of at least one image each.

    Raises:
        ConfigurationError: a number is out of its range, or no such partition can be drawn.
    """
    if not 0 <= partition_id < num_partitions or not 0 < test_fraction < 1:
        raise ConfigurationError(
            "expected a partition id from 0 to the number of partitions and a test fraction "
            f"between 0 and 1, got partition {partition_id} of {num_partitions} and "
            f"{test_fraction}; correct them"
        )
    dataset = _load_once(source, classes)
    own = _partition_once(source, classes, num_partitions, alpha, seed)[partition_id]
    train, test = _split(own, test_fraction, np.random.default_rng([seed, partition_id]))
    return dataset.subset(train), dataset.subset(test)


def partition_indices(
    labels: NDArray[np.int64],
    num_partitions: int,
    alpha: float = 1.0,
    seed: int = 0,
    smallest: int = 10,
) -> list[Indices]:
    """Deal images out to clients, each label in proportions drawn from Dirichlet(alpha).

    This is flwr-datasets' ``DirichletPartitioner`` (arXiv 1905.12022): a small alpha gives each
    client few labels, a large one the same mixture (IID).

    Args:
        labels: one label per image, (n,).
        num_partitions: how many clients.
        alpha: concentration of the distribution, above 0.
        seed: of the draw, at least 0; the same arguments give the same partition.
        smallest: least number of images of a client; it is drawn again if one has fewer.

    Returns:
        For each client the positions of its images, shuffled; each position occurs exactly once.

    Raises:
        ConfigurationError: a number is out of its range, or eleven draws gave a client too few.
    """
    if num_partitions < 1 or not 0 < alpha < math.inf or seed < 0:
        raise ConfigurationError(
            "expected at least 1 partition, a finite alpha above 0 and a seed of at least 0, got "
            f"{num_partitions}, {alpha} and {seed}; correct them"
        )
    if num_partitions == 1:
        return [np.arange(len(labels))]
    datasets, partitioners = require_datasets(), require("flwr_datasets.partitioner")
    partitioner = partitioners.DirichletPartitioner(
        num_partitions, "label", float(alpha), min_partition_size=smallest, seed=seed
    )
    columns = {"label": labels, "position": np.arange(len(labels))}
    partitioner.dataset = datasets.Dataset.from_dict(columns).with_format("numpy")
    try:
        with warnings.catch_warnings():
            # Of a draw that it repeats; if all fail there is an exception.
            warnings.filterwarnings("ignore", message="The specified min_partition_size")
            parts = [partitioner.load_partition(part) for part in range(num_partitions)]
    except ValueError as error:
        raise ConfigurationError(
            f"expected {num_partitions} partitions of at least {smallest} out of {len(labels)} "
            f"images, got none with alpha {alpha}; raise alpha or lower the number of partitions"
        ) from error
    return [np.asarray(part["position"][:], dtype=np.int64) for part in parts]


@lru_cache(maxsize=1)
def _partition_once(
    source: str, classes: int | None, num_partitions: int, alpha: float, seed: int
) -> list[Indices]:
    labels = _load_once(source, classes).y.numpy()
    return partition_indices(labels, num_partitions, alpha, seed)


def _split(own: Indices, test_fraction: float, rng: np.random.Generator) -> tuple[Indices, Indices]:
    if len(own) < 2:
        raise DataError(
            f"expected at least 2 images, one to train and one to test, got {len(own)}; "
            "give this client more data"
        )
    shuffled = rng.permutation(own)
    count = min(max(1, round(test_fraction * len(own))), len(own) - 1)
    return shuffled[count:], shuffled[:count]
