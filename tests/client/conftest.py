from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from client.data import load_dataset
from client.dataset import Dataset


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """On small models threads cost more than they give, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def idx_bytes():
    def encode(values: np.ndarray) -> bytes:
        sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
        return bytes((0, 0, 8, values.ndim)) + sizes + values.astype(np.uint8).tobytes()

    return encode


@pytest.fixture
def npz(tmp_path: Path):
    def write(**arrays: object) -> str:
        path = tmp_path / "data.npz"
        np.savez(path, **arrays)
        return str(path)

    return write
