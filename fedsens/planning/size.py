"""How many parameters a model has, from a factory or a file of weights."""

from __future__ import annotations

from math import prod
from pathlib import Path

from safetensors import SafetensorError, safe_open

from fedsens.errors import ConfigurationError


def parameters_of(path: Path) -> int:
    """Entries of all tensors of a safetensors file; only its header is read.

    Args:
        path: the file.

    Returns:
        Their number.

    Raises:
        ConfigurationError: it is no safetensors file.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            slices = (file.get_slice(name) for name in file.keys())  # noqa: SIM118 - not iterable
            return sum(prod(one.get_shape()) for one in slices)
    except (OSError, SafetensorError) as error:
        raise ConfigurationError(
            f"expected a safetensors file of weights in {path}, got {type(error).__name__}; "
            "give --model MODULE:FUNCTION or --parameters instead"
        ) from None
