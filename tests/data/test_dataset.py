from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from fedsens.data import Dataset, RawImages, load_dataset
from fedsens.errors import ConfigurationError, DataError


def raw(x=None, y=None, classes=None) -> RawImages:
    x = np.zeros((4, 5, 6), np.uint8) if x is None else x
    return RawImages(x, np.array([0, 1, 2, 1]) if y is None else y, classes)


def test_digits(digits):
    assert digits.x.shape == (1797, 1, 8, 8)
    assert digits.x.dtype == torch.float32
    assert digits.y.dtype == torch.int64
    assert (digits.x.min(), digits.x.max()) == (0, 1)
    assert digits.classes == 10
    assert digits.input_shape == (1, 8, 8)
    assert digits.y.unique().tolist() == list(range(10))
    assert len(digits) == 1797


def test_bytes_become_zero_to_one_and_channels_come_first(rng):
    pixels = rng.integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    dataset = Dataset.from_raw(raw(pixels), "here")
    assert dataset.x.shape == (4, 3, 5, 6)
    assert dataset.x.is_contiguous()
    assert dataset.x[1, 2, 3, 4].item() == pytest.approx(pixels[1, 3, 4, 2] / 255)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_taken_as_they_are(dtype):
    dataset = Dataset.from_raw(raw(np.full((4, 5, 6), -2.5, dtype)), "here")
    assert dataset.x.dtype == torch.float32
    assert (dataset.x == -2.5).all()


def test_the_caller_keeps_its_arrays():
    arrays = raw(np.ones((4, 5, 6), np.float32))
    Dataset.from_raw(arrays, "here").y.zero_()
    assert arrays.y.tolist() == [0, 1, 2, 1]


def test_number_of_classes_is_asked_for_then_stated_then_counted():
    assert Dataset.from_raw(raw(), "here").classes == 3
    assert Dataset.from_raw(raw(classes=5), "here").classes == 5
    assert Dataset.from_raw(raw(classes=5), "here", classes=7).classes == 7


def test_subset_copies():
    dataset = Dataset.from_raw(raw(), "here")
    part = dataset.subset(np.array([2, 0]))
    part.x.fill_(9)
    assert part.y.tolist() == [2, 0]
    assert part.classes == 3
    assert (dataset.x == 0).all()


@pytest.mark.parametrize(("limit", "sizes"), [(None, [4, 4, 2]), (6, [4, 2]), (20, [4, 4, 2])])
def test_batches(limit, sizes):
    dataset = Dataset(torch.rand(10, 1, 2, 2), torch.arange(10), 10)
    cut = dataset.batches(4, limit)
    assert [len(y) for _, y in cut] == sizes
    assert torch.equal(torch.cat([x for x, _ in cut]), dataset.x[:limit])
    assert torch.equal(torch.cat([y for _, y in cut]), dataset.y[:limit])
    assert cut[0][0].data_ptr() == dataset.x.data_ptr()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (raw(x=np.zeros((4, 30), np.uint8)), r"shape \(n, height, width\)"),
        (raw(x=np.zeros((4, 3, 5, 6), np.uint8)), "up to 4 channels, got"),
        (raw(x=np.zeros((0, 5, 6), np.uint8)), r"got \(0, 5, 6\)"),
        (raw(x=np.zeros((4, 5, 6), np.int64)), "uint8 or floating point, got int64"),
        (raw(x=np.full((4, 5, 6), np.nan)), "finite pixels"),
        (raw(y=np.zeros((4, 1), np.int64)), r"one integer label per image, got shape \(4, 1\)"),
        (raw(y=np.zeros(4)), "type float64"),
        (raw(y=np.zeros(3, np.int64)), "got 3 labels and 4 images"),
        (raw(y=np.array([0, 1, -1, 1])), "got -1 to 1"),
        (raw(y=np.array([0, 1, 5, 1]), classes=5), "labels from 0 to 4, got 0 to 5"),
    ],
)
def test_malformed_arrays(arrays, message):
    with pytest.raises(DataError, match=f"^here: expected .*{message}.*; "):
        Dataset.from_raw(arrays, "here")


@pytest.mark.parametrize("source", ["mnsit", "", "no/such/folder", "no/such.npz", "."])
def test_unknown_source_lists_the_formats(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"got {source!r}, which is none of them") as error:
        load_dataset(source)
    formats = ("'digits'", "IDX", "CIFAR-10", ".npz", "hf:owner/name", "save_to_disk", "parquet")
    assert all(name in str(error.value) for name in formats)


def test_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigurationError, match=r"package sklearn.*pip install \"fedsens\["):
        load_dataset("digits")
