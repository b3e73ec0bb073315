"""What a client demands of a global model that it has opened, before anything is trained on it."""

from __future__ import annotations

import math

import numpy as np

from fedsens.errors import ModelError
from fedsens.files import Arrays
from fedsens.mask import not_finite


def check_opened(arrays: Arrays, max_norm: float = 0.0) -> None:
    """Refuse a model with values that are no numbers, or one beyond a norm.

    The norm is the model's own and not that of its change: a client that is sampled now and then
    meets models that many honest rounds have moved since it last opened one, so no bound on the
    change is sound, and it would have to keep a plaintext model on its disk to compare with.

    Args:
        arrays: name to array.
        max_norm: the largest L2 norm over all floating-point values; 0 for no bound.

    Raises:
        ModelError: names what is not finite, or says that the norm is beyond the bound.
    """
    if broken := not_finite(arrays):
        raise ModelError(
            f"expected a global model of finite values, got NaN or infinity in {', '.join(broken)};"
            " do not go on with this model"
        )
    if not max_norm:
        return
    floats = (array.astype(np.float64).reshape(-1) for array in arrays.values() if _counts(array))
    with np.errstate(over="ignore"):
        norm = math.sqrt(sum(float(flat @ flat) for flat in floats))
    if not norm <= max_norm:
        raise ModelError(
            f"expected a global model of L2 norm at most {max_norm:g} (fedsens-max-norm), got one "
            "beyond; do not go on with this model, or raise the bound on this client"
        )


def _counts(array: np.ndarray) -> bool:
    return array.dtype.kind == "f"
