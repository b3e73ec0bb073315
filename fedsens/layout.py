"""ParameterLayout: where each parameter of a model lives in one flat vector."""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fedsens.errors import LayoutError

FLOATING = frozenset({"float16", "bfloat16", "float32", "float64"})
DISCRETE = frozenset({"bool"} | {f"{sign}int{n}" for sign in ("", "u") for n in (8, 16, 32, 64)})
COMPLEX = frozenset({
    "complex64",
    "complex128",
})  # averaged like others, but only where nothing is encrypted
TYPES = FLOATING | DISCRETE | COMPLEX

MOST_DIMENSIONS = 64  # NumPy's limit
MOST_ELEMENTS = 2**40  # elements of a tensor: 4 TiB of float32


@dataclass(frozen=True)
class Entry:
    """One tensor of the model: its name, shape, type and place in the flat vector.

    ``offset`` is None for a tensor that is not floating point (a BatchNorm step counter, say).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int | None

    @property
    def size(self) -> int:
        """Number of scalars in the tensor."""
        return prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of a scalar."""
        return 2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize

    @property
    def array_type(self) -> np.dtype[Any]:
        """The tensor's type as an array: NumPy has no bfloat16, whose values float32 all holds."""
        return np.dtype("float32" if self.dtype == "bfloat16" else self.dtype)

    @property
    def slice(self) -> slice:
        """The tensor's place in the flat vector."""
        if self.offset is None:
            raise LayoutError(f"{self.name} ({self.dtype}) has no place in the flat vector")
        return slice(self.offset, self.offset + self.size)


@dataclass(frozen=True)
class ParameterLayout:
    """The names, shapes and order of a model's tensors, and the flat vector they form.

    Floating-point tensors (parameters, and buffers such as BatchNorm's running statistics) are
    the P coordinates that a mask can select. Integer and boolean tensors (BatchNorm's step
    counter) are part of the layout and of its digest but are never encrypted: they travel in
    plaintext and the strategy aggregates them as it does without fedsens.
    """

    tensors: tuple[Entry, ...]

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Self:
        """Describe a state dict of torch tensors, or a mapping of NumPy arrays.

        Args:
            state: name to tensor, in the model's own order.

        Returns:
            The layout; its flat vector follows the order of ``state``.
        """
        return cls.from_shapes((name, *_describe(value)) for name, value in state.items())

    @classmethod
    def from_shapes(cls, tensors: Any) -> Self:
        """Build a layout from ``(name, shape, dtype)`` triples in order.

        Args:
            tensors: the triples; ``dtype`` is a NumPy or torch type name such as ``float32``.

        Returns:
            The layout.

        Raises:
            LayoutError: a name occurs twice or cannot be printed, a triple is malformed, a shape
                is larger than any array, or a type is none of :data:`TYPES`.
        """
        entries: list[Entry] = []
        offset = 0
        for name, shape, dtype in tensors:
            # Control characters in a name could forge lines of a log.
            if not isinstance(name, str) or not name.isprintable() or not _is_shape(shape):
                raise LayoutError(
                    f"expected a printable name, at most {MOST_DIMENSIONS} dimensions and "
                    f"{MOST_ELEMENTS} elements, got {reprlib.repr((name, shape, dtype))}"
                )
            # Any other type would never be encrypted, however sensitive.
            if dtype not in TYPES:
                raise LayoutError(
                    f"{name}: expected a type among {', '.join(sorted(TYPES))}, "
                    f"got {reprlib.repr(dtype)}; convert it, or keep it out of the state dict"
                )
            floating = dtype in FLOATING
            entries.append(Entry(name, tuple(shape), dtype, offset if floating else None))
            offset += entries[-1].size if floating else 0
        if len({entry.name for entry in entries}) != len(entries):
            raise LayoutError("a parameter name occurs twice; names must be unique")
        return cls(tuple(entries))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Rebuild a layout from :meth:`to_json`.

        Raises:
            LayoutError: the text does not describe a layout.
        """
        try:
            tensors = json.loads(text)
            triples = [(name, tuple(shape), str(dtype)) for name, shape, dtype in tensors]
        except (TypeError, ValueError, RecursionError) as error:
            raise LayoutError("expected a JSON list of [name, shape, dtype]") from error
        if not isinstance(tensors, list):
            raise LayoutError(f"expected a JSON list, got a {type(tensors).__name__}")
        return cls.from_shapes(triples)

    def to_json(self) -> str:
        """The layout as canonical JSON text."""
        return json.dumps(
            [[t.name, list(t.shape), t.dtype] for t in self.tensors], separators=(",", ":")
        )

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """The floating-point tensors, which together are the flat vector."""
        return tuple(t for t in self.tensors if t.offset is not None)

    @cached_property
    def size(self) -> int:
        """P, the number of coordinates of the flat vector."""
        return sum(t.size for t in self.entries)

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the tensors that are no floating-point ones, which are never encrypted."""
        return sum(t.size * t.itemsize for t in self.tensors if t.offset is None)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) of the canonical JSON: equal exactly for equal layouts."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def dtype(self) -> type[np.float32] | type[np.float64]:
        """Type of the flat vector: float64 if any tensor is, else float32."""
        wide = any(t.dtype == "float64" for t in self.entries)
        return np.float64 if wide else np.float32

    def __len__(self) -> int:
        return self.size

    def name_of(self, index: int) -> str:
        """Name of the tensor that holds a flat coordinate, in ``[0, P)``.

        Raises:
            LayoutError: the coordinate is outside the vector.
        """
        for entry in self.entries:
            if entry.slice.start <= index < entry.slice.stop:
                return entry.name
        raise LayoutError(f"expected a coordinate below {self.size}, got {index}")

    def flatten(self, state: Mapping[str, Any]) -> NDArray[Any]:
        """Copy the floating-point tensors of a model into one vector.

        Args:
            state: name to torch tensor or NumPy array; must pass :meth:`check`.

        Returns:
            A vector of length P in :attr:`dtype`.
        """
        self.check(state)
        flat = np.empty(self.size, self.dtype)
        for entry in self.entries:
            flat[entry.slice] = _as_numpy(state[entry.name]).reshape(-1)
        return flat

    def check_real(self) -> None:
        """Check that no tensor is complex, before anything of the model is encrypted.

        Raises:
            LayoutError: lists the complex tensors, which would be sent in plaintext whatever the
                mask.
        """
        if names := [f"{t.name} ({t.dtype})" for t in self.tensors if t.dtype in COMPLEX]:
            raise LayoutError(
                f"expected real tensors where a model is encrypted, got {', '.join(names)}; send "
                "torch.view_as_real of parameters, register constants with persistent=False, or "
                "set fedsens.ratio to 0"
            )

    def check(self, state: Mapping[str, Any]) -> None:
        """Check that a model has this layout.

        Args:
            state: name to tensor or array.

        Raises:
            LayoutError: lists every missing, unexpected or differing tensor.
        """
        mine = {t.name: (t.shape, t.dtype) for t in self.tensors}
        theirs = {name: _describe(value) for name, value in state.items()}
        problems = [f"{name} is missing" for name in mine if name not in theirs]
        problems += [f"{name} is unexpected" for name in theirs if name not in mine]
        problems += [
            f"{name}: expected {dtype}{list(shape)}, got {theirs[name][1]}{list(theirs[name][0])}"
            for name, (shape, dtype) in mine.items()
            if name in theirs and theirs[name] != (shape, dtype)
        ]
        if problems:
            raise LayoutError("the model does not have the agreed layout: " + "; ".join(problems))


def _is_shape(shape: Any) -> bool:
    # type(d), since True is an int that JSON writes differently. Zeros count as ones: NumPy
    # refuses an empty array, too, whose other dimensions are beyond its limits.
    return (
        len(shape) <= MOST_DIMENSIONS
        and all(type(d) is int and 0 <= d <= MOST_ELEMENTS for d in shape)
        and prod(max(d, 1) for d in shape) <= MOST_ELEMENTS
    )


def _describe(value: Any) -> tuple[tuple[int, ...], str]:
    if not hasattr(value, "shape"):  # such as the extra state that a torch module may save
        return (), type(value).__name__
    return tuple(value.shape), str(value.dtype).removeprefix("torch.")


def _as_numpy(value: Any) -> NDArray[Any]:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
        return np.asarray(value.numpy())
    return np.asarray(value)
