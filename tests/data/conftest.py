from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def idx_bytes():
    def encode(values: np.ndarray) -> bytes:
        sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
        return bytes((0, 0, 8, values.ndim)) + sizes + values.astype(np.uint8).tobytes()

    return encode
