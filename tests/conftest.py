from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedsens.data import Dataset, load_dataset


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def npz(tmp_path: Path):
    def write(**arrays: object) -> str:
        path = tmp_path / "data.npz"
        np.savez(path, **arrays)
        return str(path)

    return write
