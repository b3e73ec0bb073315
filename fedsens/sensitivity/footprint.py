"""What one sample's forward pass shows about all the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsens.sensitivity.batching import Inputs
from fedsens.sensitivity.capture.gradients import Outer
from fedsens.sensitivity.capture.placing import record
from fedsens.sensitivity.capture.recorder import Use
from fedsens.sensitivity.capture.registry import Cotangent
from fedsens.sensitivity.capture.samples import SampleAxis
from fedsens.sensitivity.task import Task, check_finite, wide
from fedsens.sensitivity.unsupported import UNSUPPORTED


@dataclass(frozen=True)
class Footprint:
    """What a forward pass of one sample shows.

    Attributes:
        shape: shape of the logits without batch axis.
        dtype: their type.
        bytes: memory that the sample keeps for its backward pass.
        each_row: entries that capturing keeps for each row: output gradients.
        once: entries that capturing keeps whatever the number of rows: gradients of small
            parameters, and the largest unfolded input.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    bytes: int
    each_row: int = 0
    once: int = 0


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
        return tensor.detach()  # an output that its own node holds would never be freed

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        recorder, z = record(task, x, 1)
    check_finite(z)
    each_row, once = z.numel(), [0]
    with torch.no_grad():
        for use in recorder.uses:
            row, fixed = _entries(use, wide(z.dtype))
            each_row += row
            once.append(fixed)
    small = sum(p.numel() for p in task.parameters.values() if p.ndim < 2)
    return Footprint(tuple(z.shape[1:]), z.dtype, sum(kept.values()), each_row, max(once) + small)


def _entries(use: Use, dtype: torch.dtype) -> tuple[int, int]:
    """Entries that capturing an operation keeps for each row, and once."""
    device = next(v.device for v in use.arguments.values() if isinstance(v, Tensor))
    zero = torch.zeros(use.shape, dtype=dtype, device=device)
    try:
        found = use.gradients(Cotangent(zero[None], SampleAxis(0)))
        gradients = [found[argument] for argument in use.targets]
    except UNSUPPORTED:
        return 0, 0
    row = once = 0
    for gradient in gradients:
        if isinstance(gradient, Tensor):
            once += gradient.numel()
        elif isinstance(gradient, Outer) and gradient.positions > 1:
            row += gradient.d.numel()
            once += gradient.a(slice(None)).numel()
    return row, once
