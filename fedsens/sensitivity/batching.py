"""Samples in and out of batches: tensors, or tuples, lists and mappings of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fedsens.errors import SensitivityError

Inputs = Any  # a tensor, or a tuple, list or dict of inputs


def map_tensors(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    """Apply a function to every tensor of a sample's or a batch's inputs.

    Args:
        inputs: a tensor, or a tuple, list or mapping of inputs.
        function: tensor to tensor.

    Returns:
        Inputs of the same structure (mappings become dicts).

    Raises:
        SensitivityError: something is not a tensor.
    """
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, Mapping):
        return {key: map_tensors(value, function) for key, value in inputs.items()}
    if isinstance(inputs, (list, tuple)):
        parts = [map_tensors(value, function) for value in inputs]
        return parts if isinstance(inputs, list) else tuple(parts)
    raise SensitivityError(
        f"expected inputs that are tensors, or tuples, lists or dicts of them, got "
        f"{type(inputs).__name__}; convert the batches, e.g. with a generator"
    )


def tensors_of(inputs: Inputs) -> list[Tensor]:
    """Every tensor of the inputs, in order.

    Args:
        inputs: a tensor, or a tuple, list or mapping of inputs.

    Returns:
        The tensors.
    """
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(inputs, note)
    return found


def part(inputs: Inputs, start: int, stop: int) -> Inputs:
    """Some samples of a batch.

    Args:
        inputs: inputs, the batch first.
        start: first sample.
        stop: one past the last.

    Returns:
        The same structure, cut.
    """
    return map_tensors(inputs, lambda tensor: tensor[start:stop])


def checked_batches(
    batches: Iterable[Any], device: torch.device
) -> Iterator[tuple[Inputs, Tensor]]:
    """Iterate over batches, checked and moved to a device; batches of no samples are skipped.

    Args:
        batches: iterable of (inputs, labels).
        device: where they shall be.

    Yields:
        Inputs and labels whose first axes have one length of at least 1.

    Raises:
        SensitivityError: a batch is not a pair of tensors with the same number of samples.
    """
    for batch in batches:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise SensitivityError(
                f"expected batches that are pairs (inputs, labels), got {type(batch).__name__}; "
                "convert them, e.g. ((b['img'], b['label']) for b in loader)"
            )
        x, y = batch
        if not isinstance(y, Tensor):
            raise SensitivityError(f"expected labels as a tensor, got {type(y).__name__}")
        lengths = {len(t) if t.ndim else None for t in (*tensors_of(x), y)}
        if len(lengths) != 1 or None in lengths:
            shapes = [tuple(t.shape) for t in (*tensors_of(x), y)]
            raise SensitivityError(
                f"expected inputs and labels with the samples on the first axis, got {shapes}"
            )
        if len(y):
            yield map_tensors(x, lambda tensor: tensor.to(device)), y.to(device)
