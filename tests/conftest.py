from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from fedsens.data import Dataset, load_dataset

MEMORY, ROOM = Path("/dev/shm"), 4 * 2**30  # a file system in memory, and the bytes it must have


def pytest_configure(config: pytest.Config) -> None:
    """Keep the files of the default suite in memory where there is room for them.

    Clients wait hundreds of times a round until what they wrote is on the disk. Slow tests stay on
    the disk, where deployments are.
    """
    fast = config.option.markexpr == "not slow"
    if fast and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= ROOM:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the pages, which keep a machine busy, and the faults, whose processes wait."""
    first = ("test_pages", "test_faults")

    def place(item: pytest.Item) -> int:
        return next((n for n, name in enumerate(first) if item.path.name.startswith(name)), 2)

    items.sort(key=place)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave slow tests out after a time, so that a run with a limit ends with what it has found."""
    end = float(os.environ.get("SLOW_TESTS_BEGIN_UNTIL", "inf"))
    if item.get_closest_marker("slow") and time.time() > end:
        pytest.skip("the time of this run is over; make test-slow runs it")


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
