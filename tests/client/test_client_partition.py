from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from client import partition
from client.partition import load_partition, partition_indices
from fedsens.errors import ConfigurationError, DataError

LABELS = np.repeat(np.arange(10), 60)


def skew(parts: list[np.ndarray]) -> float:
    """Mean share of the commonest label in a part: 0.1 if IID, 1 if each part has one label."""
    return float(np.mean([np.bincount(LABELS[part]).max() / len(part) for part in parts]))


@pytest.fixture(autouse=True)
def forget():
    partition._load_once.cache_clear()
    partition._partition_once.cache_clear()


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("alpha", [0.3, 1, 1000.0])
def test_every_image_goes_to_exactly_one_client(count, alpha):
    parts = partition_indices(LABELS, count, alpha, seed=1)
    assert len(parts) == count
    assert sorted(np.concatenate(parts)) == list(range(len(LABELS)))
    assert all(len(part) >= 10 for part in parts)


def test_same_seed_same_partition():
    one, same, other = (partition_indices(LABELS, 4, 1.0, seed) for seed in (1, 1, 2))
    assert all(map(np.array_equal, one, same))
    assert not all(map(np.array_equal, one, other))


def test_alpha_is_the_label_skew():
    skews = [skew(partition_indices(LABELS, 4, alpha, seed=0)) for alpha in (0.1, 1.0, 10_000.0)]
    assert skews == sorted(skews, reverse=True)
    assert skews[0] > 0.3
    assert skews[-1] < 0.12


def test_parts_are_shuffled():
    part = partition_indices(LABELS, 2, 1000.0)[0]
    assert not np.array_equal(part, np.sort(part))


@pytest.mark.parametrize(
    ("count", "alpha", "seed"),
    [
        (0, 1.0, 0),
        (2, 0.0, 0),
        (2, -1.0, 0),
        (2, float("inf"), 0),
        (2, float("nan"), 0),
        (2, 1, -1),
    ],
)
def test_numbers_out_of_range(count, alpha, seed):
    with pytest.raises(ConfigurationError, match="at least 1 partition, a finite alpha"):
        partition_indices(LABELS, count, alpha, seed)


@pytest.mark.parametrize(("count", "alpha"), [(8, 0.001), (100, 1.0), (601, 1.0)])
def test_partition_that_cannot_be_drawn(count, alpha):
    with pytest.raises(ConfigurationError, match="raise alpha or lower the number of partitions"):
        partition_indices(LABELS, count, alpha)


def test_train_and_test_of_all_clients_are_the_data_set(digits):
    parts = [part for client in range(8) for part in load_partition("digits", client, 8)]
    rows = torch.cat([part.x.flatten(1) for part in parts])
    assert sum(map(len, parts)) == len(digits)
    assert torch.equal(rows.sum(dim=0), digits.x.flatten(1).sum(dim=0))
    assert all(part.classes == 10 for part in parts)


@pytest.mark.parametrize(("fraction", "expected"), [(0.2, 0.2), (0.5, 0.5)])
def test_test_fraction(fraction, expected):
    train, test = load_partition("digits", 0, 4, test_fraction=fraction)
    assert len(test) / (len(train) + len(test)) == pytest.approx(expected, abs=0.01)


def test_split_depends_on_the_seed_and_the_client(npz):
    source = npz(x=np.arange(400.0).reshape(100, 2, 2), y=np.zeros(100, int), classes=2)
    one, same, other = (load_partition(source, 0, 1, seed=seed)[1] for seed in (0, 0, 1))
    assert torch.equal(one.x, same.x)
    assert not torch.equal(one.x, other.x)


def test_smallest_client_has_one_image_of_each(npz):
    x, y = np.zeros((2, 2, 2)), np.array([0, 1])
    assert [len(part) for part in load_partition(npz(x=x, y=y), 0, 1)] == [1, 1]


def test_one_image_is_too_few(npz):
    source = npz(x=np.zeros((1, 2, 2)), y=np.array([0]), classes=2)
    with pytest.raises(DataError, match="expected at least 2 images"):
        load_partition(source, 0, 1)


@pytest.mark.parametrize(("client", "count", "fraction"), [(-1, 2, 0.2), (2, 2, 0.2), (0, 2, 1.0)])
def test_client_or_fraction_out_of_range(client, count, fraction):
    with pytest.raises(ConfigurationError, match="expected a partition id"):
        load_partition("digits", client, count, test_fraction=fraction)


def test_reads_and_deals_once_per_process(monkeypatch):
    load_partition("digits", 0, 4)
    monkeypatch.setattr(partition, "partition_indices", None)
    monkeypatch.setattr(sys.modules["fedsens.data._readers"], "require", None)
    load_partition("digits", 3, 4)[0].x.zero_()
    assert load_partition("digits", 3, 4)[0].x.any()


def test_a_client_with_its_own_data_needs_no_partitioner(npz):
    """In a deployment every message starts a process, where importing datasets takes seconds."""
    source = npz(x=np.zeros((5, 2, 2)), y=np.array([0, 1, 0, 1, 0]))
    script = (
        "import sys; from client.partition import load_partition; "
        f"load_partition({source!r}, 0, 1); assert 'datasets' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
