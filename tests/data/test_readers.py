"""Readers: how one is registered, and the formats that fedsens brings."""

import gzip
from copy import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsens.data import RawImages, _readers, load_dataset, register_reader
from fedsens.errors import DataError


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    """What a test registers is gone after it."""
    registry = copy(_readers._readers)
    registry._entries = dict(registry._entries)
    monkeypatch.setattr(_readers, "_readers", registry)


def zeros(count: int) -> RawImages:
    return RawImages(np.zeros((count, 2, 2), np.uint8), np.zeros(count, int), classes=2)


def test_a_format_is_one_decorated_function():
    @register_reader("zeros:n", claims=lambda source: source.startswith("zeros:"))
    def read_zeros(source):
        return zeros(int(source.removeprefix("zeros:")))

    assert load_dataset("zeros:7").x.shape == (7, 1, 2, 2)


def test_the_first_reader_that_claims_a_source_reads_it():
    for count in (1, 2):
        reads = register_reader(f"mine {count}", claims=lambda source: source == "mine")
        reads(lambda source, count=count: zeros(count))
    assert len(load_dataset("mine")) == 1


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.fixture
def idx(tmp_path, idx_bytes, rng):
    """Write a pair of IDX files; a test then damages one of them."""
    x = rng.integers(0, 256, (6, 5, 4), dtype=np.uint8)
    y = np.array([0, 1, 2, 3, 1, 0], np.uint8)
    (tmp_path / IMAGES).write_bytes(idx_bytes(x))
    (tmp_path / LABELS).write_bytes(idx_bytes(y))
    return tmp_path, x, y


def same(dataset, x, y) -> bool:
    channels_last = dataset.x.permute(0, 2, 3, 1).numpy()
    pixels = channels_last.reshape(x.shape)
    return np.allclose(pixels, x / 255, atol=1e-7) and dataset.y.tolist() == y.tolist()


class TestIdx:
    def test_folder_and_file(self, idx):
        folder, x, y = idx
        for source in (folder, folder / IMAGES):
            dataset = load_dataset(str(source))
            assert same(dataset, x, y)
            assert dataset.classes == 4

    def test_folder_pools_its_pairs_in_the_order_of_their_names(self, idx, idx_bytes):
        folder, x, y = idx
        (folder / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(x[:2]))
        (folder / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(y[:2]))
        assert same(load_dataset(str(folder)), np.concatenate([x[:2], x]), np.append(y[:2], y))

    @pytest.mark.parametrize("both", [True, False])
    def test_gzip(self, idx, both):
        folder, x, y = idx
        for name in (IMAGES, LABELS) if both else (IMAGES,):
            (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
            (folder / name).unlink()
        assert same(load_dataset(str(folder)), x, y)
        assert same(load_dataset(str(folder / f"{IMAGES}.gz")), x, y)

    @pytest.mark.parametrize("name", [IMAGES, LABELS])
    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda content: content[:-1], r"\d+ values after the header, got only"),
            (lambda content: content + b"\0", r"\d+ values after the header, got more"),
            (lambda content: content[:6], "an IDX header"),
            (lambda content: b"", "an IDX header"),
            (lambda content: b"\0\0\x0d" + content[3:], "an IDX header 000008"),
            (gzip.compress, r"an IDX header .* unpacked if it has no \.gz"),
        ],
    )
    def test_damaged(self, idx, name, damage, message):
        folder, *_ = idx
        (folder / name).write_bytes(damage((folder / name).read_bytes()))
        with pytest.raises(DataError, match=f"{name}: expected {message}"):
            load_dataset(str(folder))

    @pytest.mark.parametrize(
        "damage",
        [
            lambda packed: packed[:-12],
            lambda packed: b"not gzip" + packed,
            lambda packed: packed[:12] + b"\xff" + packed[13:],
        ],
    )
    def test_damaged_gzip(self, idx, damage):
        folder, *_ = idx
        packed = gzip.compress((folder / IMAGES).read_bytes())
        (folder / f"{IMAGES}.gz").write_bytes(damage(packed))
        with pytest.raises(DataError, match="expected a whole gzip file"):
            load_dataset(str(folder / f"{IMAGES}.gz"))

    def test_images_and_labels_swapped(self, idx):
        folder, *_ = idx
        content = (folder / LABELS).read_bytes()
        (folder / IMAGES).write_bytes(content)
        with pytest.raises(DataError, match="00000803 with 3 sizes, got 00000801"):
            load_dataset(str(folder))

    def test_counts_differ(self, idx, idx_bytes):
        folder, *_ = idx
        (folder / LABELS).write_bytes(idx_bytes(np.zeros(5)))
        with pytest.raises(DataError, match="got 5 labels and 6 images"):
            load_dataset(str(folder))

    def test_labels_missing(self, idx):
        folder, *_ = idx
        (folder / LABELS).unlink()
        with pytest.raises(DataError, match=f"its labels in {LABELS}, got no such file"):
            load_dataset(str(folder))

    def test_sizes_differ(self, idx, idx_bytes):
        folder, x, y = idx
        (folder / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(x[:, :3]))
        (folder / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(y))
        with pytest.raises(DataError, match="images of one size"):
            load_dataset(str(folder))

    def test_label_beyond_the_number_of_classes(self, idx):
        with pytest.raises(DataError, match="labels from 0 to 2, got 0 to 3"):
            load_dataset(str(idx[0]), classes=3)


class TestCifar10:
    @staticmethod
    def write(path: Path, labels: list[int], rng: np.random.Generator) -> np.ndarray:
        images = rng.integers(0, 256, (len(labels), 3, 32, 32), dtype=np.uint8)
        rows = np.hstack([np.array(labels, np.uint8)[:, None], images.reshape(len(labels), -1)])
        path.write_bytes(rows.tobytes())
        return images

    def test_folder_and_file(self, tmp_path, rng):
        first = self.write(tmp_path / "data_batch_1.bin", [3, 9], rng)
        second = self.write(tmp_path / "data_batch_2.bin", [0], rng)
        last = self.write(tmp_path / "test_batch.bin", [5], rng)
        dataset = load_dataset(str(tmp_path))
        images = torch.from_numpy(np.concatenate([first, second, last]))
        assert torch.equal(dataset.x, images.float() / 255)
        assert dataset.y.tolist() == [3, 9, 0, 5]
        assert dataset.classes == 10
        assert load_dataset(str(tmp_path / "test_batch.bin")).y.tolist() == [5]

    @pytest.mark.parametrize("size", [0, 1, 3072, 3074, 2 * 3073 - 1])
    def test_truncated(self, tmp_path, size):
        (tmp_path / "test_batch.bin").write_bytes(bytes(size))
        with pytest.raises(DataError, match=f"3073-byte records, got {size} bytes"):
            load_dataset(str(tmp_path))

    def test_label_out_of_range(self, tmp_path, rng):
        self.write(tmp_path / "test_batch.bin", [10], rng)
        with pytest.raises(DataError, match="labels from 0 to 9, got 10 to 10"):
            load_dataset(str(tmp_path))


class TestNpz:
    @pytest.mark.parametrize("shape", [(3, 5, 4), (3, 5, 4, 1), (3, 5, 4, 3)])
    def test_bytes(self, npz, rng, shape):
        x, y = rng.integers(0, 256, shape, dtype=np.uint8), np.array([2, 0, 1])
        assert same(load_dataset(npz(x=x, y=y)), x, y)

    def test_floats(self, npz, rng):
        x = rng.random((3, 5, 4))
        dataset = load_dataset(npz(x=x, y=np.array([2, 0, 1], np.uint8)))
        assert torch.equal(dataset.x[:, 0], torch.from_numpy(x).float())

    @pytest.mark.parametrize("classes", [np.array(["ant", "bee", "cat", "dog"]), np.int64(4)])
    def test_classes_are_a_number_or_names(self, npz, classes):
        source = npz(x=np.zeros((2, 5, 4)), y=np.array([0, 1]), classes=classes)
        assert load_dataset(source).classes == 4

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"x": np.zeros((2, 5, 4))}, "without y; name them so"),
            ({"y": np.zeros(2, int)}, "without x; name them so"),
            ({"images": np.zeros(2)}, r"got \['images'\] without x and y"),
            ({"x": np.zeros((2, 5, 4)), "y": np.array([0, 1, 1])}, "3 labels and 2 images"),
            ({"x": np.array([object()] * 2), "y": np.array([0, 1])}, "arrays of numbers"),
            ({"x": np.zeros((2, 5, 4)), "y": np.array([0, None])}, "without arrays of objects"),
            (
                {"x": np.zeros((2, 5, 4)), "y": np.array([0, 2]), "classes": np.int64(2)},
                "labels from 0 to 1, got 0 to 2",
            ),
            (
                {"x": np.zeros((2, 5, 4)), "y": np.array([0, 1]), "classes": np.array([1.5, 2])},
                "classes to be a number or a list of names",
            ),
        ],
    )
    def test_malformed(self, npz, arrays, message):
        source = npz(**arrays)
        with pytest.raises(DataError, match=message):
            load_dataset(source)

    def test_truncated(self, npz):
        path = Path(npz(x=np.zeros((9, 5, 4)), y=np.zeros(9, int)))
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(DataError, match="another kind of file or a truncated one"):
            load_dataset(str(path))

    def test_flipped_bits(self, npz):
        path = Path(npz(x=np.zeros((9, 5, 4)), y=np.zeros(9, int)))
        content = bytearray(path.read_bytes())
        content[400:410] = b"\xff" * 10
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"readable arrays .* Bad CRC-32"):
            load_dataset(str(path))

    def test_other_file_with_the_name(self, tmp_path):
        path = tmp_path / "data.npz"
        np.save(tmp_path / "data.npy", np.zeros(3))
        (tmp_path / "data.npy").rename(path)
        with pytest.raises(DataError, match=r"expected an \.npz archive"):
            load_dataset(str(path))
