from __future__ import annotations

from copy import copy

import numpy as np
import pytest

from fedsens.data import RawImages, _readers, load_dataset, register_reader


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
