"""How many parameters a model has and how wide they are, from a state dict or a file of weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fedsens.errors import ConfigurationError
from fedsens.layout import ParameterLayout
from fedsens.protocol import mean_width

TYPES = {
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U8": "uint8",
    "BOOL": "bool",
}


@dataclass(frozen=True)
class ModelSize:
    """What of a model decides how many bytes it is.

    Attributes:
        parameters: P, floating-point entries of the model's state.
        width: bytes of one of them in plaintext, on average.
    """

    parameters: int
    width: float = 4.0

    @classmethod
    def of(cls, layout: ParameterLayout) -> ModelSize:
        """The size of a layout."""
        return cls(layout.size, mean_width(layout))


def size_of_state(state: Mapping[str, Any]) -> ModelSize:
    """The size of a state dict; LayoutError where it cannot be sent.

    Args:
        state: name to tensor.

    Returns:
        The size.
    """
    layout = ParameterLayout.from_state_dict(state)
    return ModelSize.of(
        ParameterLayout.from_shapes((t.name, t.shape, _sent_as(t.dtype)) for t in layout.tensors)
    )


def size_of_file(path: Path) -> ModelSize:
    """The size of a safetensors file, of which only the header is read.

    Args:
        path: the file.

    Returns:
        The size.

    Raises:
        ConfigurationError: it is no safetensors file, or holds types that no model is sent in.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not iterable
            tensors = [(n, tuple(s.get_shape()), s.get_dtype()) for n, s in slices.items()]
    except (OSError, SafetensorError) as error:
        raise ConfigurationError(
            f"expected a safetensors file of weights in {path}, got {type(error).__name__}; "
            "give --model MODULE:FUNCTION or --parameters instead"
        ) from None
    unknown = [f"{name} ({dtype})" for name, _, dtype in tensors if dtype not in TYPES]
    if unknown:
        raise ConfigurationError(
            f"expected tensors of types among {', '.join(TYPES)} in {path}, got "
            f"{', '.join(unknown)}; convert them"
        )
    shapes = ((name, shape, _sent_as(TYPES[dtype])) for name, shape, dtype in tensors)
    return ModelSize.of(ParameterLayout.from_shapes(shapes))


def _sent_as(dtype: str) -> str:
    """The type that a tensor is sent in, since NumPy has no bfloat16."""
    return "float32" if dtype == "bfloat16" else dtype
