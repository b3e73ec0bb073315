"""What one sample's forward pass shows about all the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsens.sensitivity.batching import Inputs
from fedsens.sensitivity.task import Task, check_finite


@dataclass(frozen=True)
class Footprint:
    """What a forward pass of one sample shows.

    Attributes:
        shape: shape of the logits without batch axis.
        dtype: their type.
        bytes: memory that the sample keeps for its backward pass.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    bytes: int


def footprint(task: Task, x: Inputs) -> Footprint:
    """Run one sample forward and see what it gives and keeps.

    Args:
        task: the task.
        x: inputs of one sample, with a batch axis of length 1.

    Returns:
        The footprint.
    """
    weights = {p.untyped_storage().data_ptr() for p in task.model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.data_ptr()] = min(tensor.nbytes, tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        z = task.logits(x)
    check_finite(z)
    return Footprint(tuple(z.shape), z.dtype, sum(kept.values()))
