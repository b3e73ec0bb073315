"""What a checkpoint must know of the inner strategy: its settings, and what it keeps by itself.

FedAvg and FedProx keep nothing between rounds. With ratio 0 any strategy may be wrapped, and
server-side optimisers keep moments. A strategy that keeps something else cannot be checkpointed
and is refused, because a resumed run would silently differ.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy

from fedsens.errors import StrategyError
from fedsens.files import Arrays

FUNCTIONS = (FunctionType, MethodType, BuiltinFunctionType, type)
PLAIN = (str, int, float, bool, type(None))
NUMPY = (np.ndarray, np.generic)  # arithmetic on arrays of no dimension leaves NumPy scalars
KIND = "fedsens.kind"  # marks the description of arrays among an attribute's plain values
SEPARATOR = "/"


@dataclass
class InnerState:
    """The attributes of a strategy, in a form that a file can hold.

    Attributes:
        plain: attribute to JSON value; of arrays their description.
        arrays: "attribute/name" to array.
    """

    plain: dict[str, Any] = field(default_factory=dict)
    arrays: Arrays = field(default_factory=dict)


def capture(strategy: Strategy) -> InnerState:
    """Take the attributes of a strategy; functions are left out.

    Args:
        strategy: the inner strategy.

    Returns:
        Its attributes; later changes of plain ones do not show.

    Raises:
        StrategyError: an attribute is neither plain, nor arrays, nor a function.
    """
    state = InnerState()
    for name, value in vars(strategy).items():
        if isinstance(value, FUNCTIONS):
            continue
        if _is_plain(value):
            state.plain[name] = deepcopy(value)
            continue
        kind, arrays = _arrays(value)
        if kind is None:
            raise StrategyError(
                f"expected a strategy whose state a checkpoint can hold, got "
                f"{type(strategy).__name__} with {name!r} of type {type(value).__name__}; clear "
                "fedsens.checkpoint-dir, or keep that state as numbers or NumPy arrays"
            )
        state.plain[name] = {KIND: kind, "names": list(arrays)}
        state.arrays |= {f"{name}{SEPARATOR}{key}": array for key, array in arrays.items()}
    return state


def restore(strategy: Strategy, state: InnerState) -> None:
    """Set attributes of a strategy as :func:`capture` found them.

    Args:
        strategy: the inner strategy; attributes that the state does not name stay.
        state: the state.
    """
    for name, value in state.plain.items():
        if isinstance(value, dict) and KIND in value:
            arrays = {key: state.arrays[f"{name}{SEPARATOR}{key}"] for key in value["names"]}
            value = _rebuild(value[KIND], arrays)
        setattr(strategy, name, value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return isinstance(value, PLAIN)


def _arrays(value: Any) -> tuple[str | None, Arrays]:
    if isinstance(value, np.ndarray):
        return "array", {"0": value}
    if isinstance(value, ArrayRecord):
        return "record", {name: array.numpy() for name, array in value.items()}
    if isinstance(value, list) and all(isinstance(each, NUMPY) for each in value):
        return "list", {str(index): np.asarray(each) for index, each in enumerate(value)}
    if isinstance(value, dict) and all(
        isinstance(key, str) and isinstance(each, NUMPY) for key, each in value.items()
    ):
        return "dict", {key: np.asarray(each) for key, each in value.items()}
    return None, {}


def _rebuild(kind: str, arrays: Arrays) -> Any:
    if kind == "array":
        return arrays["0"]
    if kind == "list":
        return list(arrays.values())
    if kind == "record":
        return ArrayRecord({name: Array(array) for name, array in arrays.items()})
    return arrays
