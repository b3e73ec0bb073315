"""scikit-learn's bundled 8x8 digits: real images without a download."""

from __future__ import annotations

import numpy as np

from fedsens.data.dataset import RawImages
from fedsens.data.readers.registry import register_reader
from fedsens.extras import require


@register_reader("'digits'", claims=lambda source: source == "digits")
def read_digits(source: str) -> RawImages:
    """Read the 1797 images, whose grey levels 0 to 16 become [0, 1]."""
    digits = require("sklearn.datasets").load_digits()
    return RawImages((digits.images / 16).astype(np.float32), digits.target, classes=10)
