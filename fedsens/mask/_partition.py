"""The walk by tensor: what of a model is encrypted, what stays in plaintext, and both together.

The law is ``combine(*partition(arrays, mask, layout), layout, mask) == arrays``, bit for bit. A
tensor without masked coordinates keeps its shape; of one with masked coordinates only the visible
values stay in the plaintext part, as a vector in order, so that it holds nothing at all for the
masked ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsens._files import Arrays
from fedsens.errors import LayoutError
from fedsens.layout import Entry, ParameterLayout

if TYPE_CHECKING:
    from fedsens.mask._mask import EncryptionMask


def separate(flat: NDArray[Any], selected: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The selected and the other values of a vector, both in order and as copies."""
    return flat[selected], flat[~selected]


def merge(
    selected: NDArray[np.bool_], masked: NDArray[Any], rest: NDArray[Any], dtype: Any
) -> NDArray[Any]:
    """Undo :func:`separate`; a view of the masked values where there are no others."""
    if not len(rest):
        return masked.astype(dtype, copy=False)
    flat = np.empty(selected.size, dtype)
    flat[selected] = masked
    flat[~selected] = rest
    return flat


def partition(
    arrays: Mapping[str, NDArray[Any]], mask: EncryptionMask, layout: ParameterLayout
) -> tuple[Arrays, NDArray[np.floating]]:
    """Separate the masked coordinates of a model from the plaintext remainder.

    Args:
        arrays: name to array, exactly of this layout.
        mask: the mask, of this layout.
        layout: the layout.

    Returns:
        The remainder (tensors that nothing of is masked are the same arrays, not copies) and the k
        masked values in the order of the flat vector, in the layout's type.
    """
    plain: Arrays = {}
    masked = np.empty(mask.k, layout.dtype)
    for entry, selected, place in _walk(mask, layout):
        array = arrays[entry.name]
        if selected is None:
            plain[entry.name] = array
        else:
            masked[place], plain[entry.name] = separate(array.reshape(-1), selected)
    return plain, masked


def combine(
    plain: Mapping[str, NDArray[Any]],
    masked: NDArray[Any],
    layout: ParameterLayout,
    mask: EncryptionMask,
) -> Arrays:
    """Undo :func:`partition`.

    Args:
        plain: the remainder; see :func:`check_plain`.
        masked: the k masked values.
        layout: the layout.
        mask: the mask.

    Returns:
        Name to array; tensors with masked coordinates in the layout's shape and type.
    """
    arrays: Arrays = {}
    for entry, selected, place in _walk(mask, layout):
        array = plain[entry.name]
        if selected is not None:
            array = merge(selected, masked[place], array, entry.array_type).reshape(entry.shape)
        arrays[entry.name] = array
    return arrays


def with_nan(
    plain: Mapping[str, NDArray[Any]], layout: ParameterLayout, mask: EncryptionMask
) -> Arrays:
    """What the server knows of a model: the layout's shapes, NaN at every masked coordinate.

    Args:
        plain: the remainder.
        layout: the layout.
        mask: the mask.

    Returns:
        Name to array.
    """
    return combine(plain, np.broadcast_to(layout.dtype(np.nan), mask.k), layout, mask)


def check_plain(
    plain: Mapping[str, NDArray[Any]], layout: ParameterLayout, mask: EncryptionMask
) -> None:
    """Check that a remainder has the names and sizes that layout and mask leave.

    Args:
        plain: the remainder.
        layout: the layout.
        mask: the mask.

    Raises:
        LayoutError: lists every missing, unexpected or differing tensor.
    """
    expected = {
        entry.name: entry.shape if selected is None else (entry.size - (part.stop - part.start),)
        for entry, selected, part in _walk(mask, layout)
    }
    problems = [f"{name} is missing" for name in expected if name not in plain]
    problems += [f"{name} is unexpected" for name in plain if name not in expected]
    problems += [
        f"{name}: expected shape {list(shape)}, got {list(plain[name].shape)}"
        for name, shape in expected.items()
        if name in plain and tuple(plain[name].shape) != shape
    ]
    if problems:
        raise LayoutError("the plaintext part does not fit layout and mask: " + "; ".join(problems))


def as_layout_types(arrays: Mapping[str, NDArray[Any]], layout: ParameterLayout) -> Arrays:
    """The arrays of a model in the types of its layout.

    A strategy's mean of equal integers is a float that may be a little below them (0.9999... for
    1), so values are rounded, half to even, before they become integers or booleans.

    Args:
        arrays: name to array, of this layout but for the types.
        layout: the layout.

    Returns:
        Name to array in the order of the layout; what has its type already is not copied.

    Raises:
        LayoutError: a tensor is missing, unknown or of another shape, or a value is no number of
            the layout's integer type. Lists every such tensor.
    """
    shapes = {t.name: t.shape for t in layout.tensors}
    if differ := [n for n in {**shapes, **arrays} if shapes.get(n) != _shape_of(arrays, n)]:
        raise LayoutError(
            "expected the tensors of the model, got others, or of other shapes, in "
            f"{', '.join(differ)}; look at what the strategy returns"
        )
    typed = {t.name: _as_type(arrays[t.name], t.array_type) for t in layout.tensors}
    if wrong := [t for t in layout.tensors if typed[t.name] is None]:
        raise LayoutError(
            "expected numbers of the layout's integer types, got NaN, infinity or others out of "
            f"range in {', '.join(f'{t.name} ({t.dtype})' for t in wrong)}; keep these buffers out "
            "of the state dict, or look at the strategy's mean"
        )
    return {name: array for name, array in typed.items() if array is not None}


def not_finite(arrays: Mapping[str, NDArray[Any]]) -> list[str]:
    """Names of the floating-point arrays that hold a NaN or an infinity.

    Args:
        arrays: name to array.

    Returns:
        Their names, in order.
    """
    return [n for n, a in arrays.items() if a.dtype.kind == "f" and not np.isfinite(a).all()]


def _walk(
    mask: EncryptionMask, layout: ParameterLayout
) -> Iterator[tuple[Entry, NDArray[np.bool_] | None, slice]]:
    """Each tensor, its flat selection (None if nothing of it is masked), its place among the k."""
    start = 0
    for entry in layout.tensors:
        # Integers have no place in the flat vector, so no mask ever holds them.
        selected = None if entry.offset is None else mask.of(entry).reshape(-1)
        count = 0 if selected is None else int(np.count_nonzero(selected))
        yield entry, selected if count else None, slice(start, start + count)
        start += count


def _shape_of(arrays: Mapping[str, NDArray[Any]], name: str) -> tuple[int, ...] | None:
    return tuple(arrays[name].shape) if name in arrays else None


def _as_type(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any] | None:
    """The array in a type; None if that type has no such number."""
    if dtype.kind not in "biu" or array.dtype == dtype:
        return np.asarray(array, dtype)
    # NumPy makes a scalar of an array without axes, which torch.from_numpy does not take.
    rounded = np.asarray(np.rint(array)) if array.dtype.kind == "f" else np.asarray(array)
    if not array.size:
        return rounded.astype(dtype)
    low, high = rounded.min(), rounded.max()
    info = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    # As Python's integers: the largest int64 rounds up as a float, and would then seem to fit.
    fits = np.isfinite([low, high]).all() and info[0] <= int(low) and int(high) <= info[1]
    return rounded.astype(dtype) if fits else None
