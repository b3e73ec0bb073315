from __future__ import annotations

import sys

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image

from fedsens._imports import require_datasets
from fedsens.data import load_dataset
from fedsens.errors import ConfigurationError, DataError

datasets = require_datasets()


@pytest.fixture
def pictures(rng):
    return rng.integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)


def dataset_of(images, image="image", label="label"):
    features = datasets.Features({
        image: datasets.Image(),
        label: datasets.ClassLabel(names=["a", "b", "c"]),
    })
    labels = [index % 2 for index in range(len(images))]
    return datasets.Dataset.from_dict({image: images, label: labels}, features=features)


def pil(pictures, mode="RGB"):
    return [Image.fromarray(picture).convert(mode) for picture in pictures]


def same(dataset, pictures) -> bool:
    return torch.equal(dataset.x, torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255)


@pytest.mark.parametrize(("image", "label"), [("image", "label"), ("img", "fine_label")])
def test_saved_to_disk(tmp_path, pictures, image, label):
    dataset_of(pil(pictures), image, label).save_to_disk(tmp_path / "saved")
    dataset = load_dataset(str(tmp_path / "saved"))
    assert same(dataset, pictures)
    assert dataset.y.tolist() == [0, 1, 0, 1]
    assert dataset.classes == 3


def test_splits_saved_to_disk_are_pooled(tmp_path, pictures):
    both = {"train": dataset_of(pil(pictures[:3])), "test": dataset_of(pil(pictures[3:]))}
    datasets.DatasetDict(both).save_to_disk(tmp_path)
    assert same(load_dataset(str(tmp_path)), pictures)


def test_parquet(tmp_path, pictures):
    folder = tmp_path / "data"
    folder.mkdir()
    dataset_of(pil(pictures[:3])).to_parquet(folder / "train-0.parquet")
    dataset_of(pil(pictures[3:])).to_parquet(folder / "train-1.parquet")
    assert same(load_dataset(str(tmp_path)), pictures)
    assert same(load_dataset(str(folder / "train-1.parquet")), pictures[3:])


def test_parquet_of_other_programs(tmp_path, pictures):
    """Without the hub's schema the pictures are plain bytes and the labels plain integers."""
    table = dataset_of(pil(pictures)).data.table.replace_schema_metadata(None)
    parquet.write_table(table, tmp_path / "data.parquet")
    dataset = load_dataset(str(tmp_path))
    assert same(dataset, pictures)
    assert dataset.classes == 2


@pytest.mark.parametrize("column", [["a.png"] * 4, [{"url": "a.png"}] * 4, [[1, 2], [3], [], [4]]])
def test_column_without_pictures(tmp_path, column):
    table = {"image": column, "label": [0, 1, 0, 1]}
    datasets.Dataset.from_dict(table).save_to_disk(tmp_path)
    with pytest.raises(DataError, match=r"expected (images of shape|a picture in every row)"):
        load_dataset(str(tmp_path))


def test_grey_pictures(tmp_path, pictures):
    dataset_of(pil(pictures, "L")).save_to_disk(tmp_path)
    assert load_dataset(str(tmp_path)).input_shape == (1, 6, 5)


@pytest.mark.parametrize(("dtype", "divisor"), [("uint8", 255), ("float32", 1)])
@pytest.mark.parametrize("nested", [True, False])
def test_columns_of_numbers(tmp_path, pictures, dtype, divisor, nested):
    value = datasets.Value(dtype)
    column = (
        datasets.List(datasets.List(datasets.List(value)))
        if nested
        else datasets.Array3D(pictures.shape[1:], dtype)
    )
    features = datasets.Features({"x": column, "y": datasets.Value("int64")})
    table = {"x": pictures.tolist(), "y": [0, 1, 2, 1]}
    datasets.Dataset.from_dict(table, features=features).save_to_disk(tmp_path)
    dataset = load_dataset(str(tmp_path))
    expected = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / divisor
    assert torch.equal(dataset.x, expected)
    assert dataset.classes == 3


@pytest.mark.parametrize(("image", "label"), [("photo", "label"), ("image", "target")])
def test_unknown_columns(tmp_path, pictures, image, label):
    dataset_of(pil(pictures), image, label).save_to_disk(tmp_path)
    with pytest.raises(DataError, match=f"expected a column named .* got {image}, {label}; rename"):
        load_dataset(str(tmp_path))


@pytest.mark.parametrize(
    "images",
    [
        lambda pictures: pil(pictures[:2]) + pil(pictures[2:], "L"),
        lambda pictures: pil(pictures[:2]) + pil(pictures[2:, :3]),
        lambda pictures: pil(pictures, "RGBA"),
    ],
)
def test_pictures_that_do_not_fit(tmp_path, pictures, images):
    dataset_of(images(pictures)).save_to_disk(tmp_path)
    with pytest.raises(DataError, match="expected pictures of one size, all of mode L or all"):
        load_dataset(str(tmp_path))


@pytest.mark.parametrize("picture", [None, {"bytes": b"no picture", "path": None}])
def test_row_without_a_picture(tmp_path, pictures, picture):
    dataset_of([*pil(pictures), picture]).save_to_disk(tmp_path)
    with pytest.raises(DataError, match="expected a picture in every row"):
        load_dataset(str(tmp_path))


def test_row_without_a_label(tmp_path, pictures):
    dataset = dataset_of(pil(pictures)).remove_columns("label")
    dataset.add_column("label", [0, None, 1, 1]).save_to_disk(tmp_path)
    with pytest.raises(DataError, match="one integer label per image"):
        load_dataset(str(tmp_path))


def test_empty(tmp_path):
    parquet.write_table(dataset_of([]).data.table, tmp_path / "none.parquet")
    with pytest.raises(DataError, match="at least one row"):
        load_dataset(str(tmp_path))


@pytest.mark.parametrize("name", ["train.parquet", "state.json", "dataset_dict.json"])
@pytest.mark.parametrize("content", ["", "{}", "PAR1 and more"])
def test_damaged_files(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match="that Hugging Face datasets can open"):
        load_dataset(str(tmp_path))


@pytest.mark.parametrize(
    ("source", "name", "split"),
    [("hf:owner/name", "owner/name", None), ("hf:owner/name@test", "owner/name", "test")],
)
def test_hub_name_and_split(monkeypatch, pictures, source, name, split):
    asked = []

    def load(name, split):
        asked.append((name, split))
        found = dataset_of(pil(pictures))
        return found if split else datasets.DatasetDict(train=found)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert same(load_dataset(source), pictures)
    assert asked == [(name, split)]


def test_hub_out_of_reach(monkeypatch):
    def load(name, split):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError, match="ConnectionError: offline; check the name"):
        load_dataset("hf:owner/name")


def test_package_missing(tmp_path, monkeypatch):
    (tmp_path / "state.json").touch()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigurationError, match="package datasets, got none; install it with"):
        load_dataset(str(tmp_path))
