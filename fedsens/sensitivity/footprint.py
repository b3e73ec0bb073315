"""What one sample's forward pass shows about all the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsens.sensitivity.batching import Inputs
from fedsens.sensitivity.capture.gradients import Outer
from fedsens.sensitivity.capture.head import find_head
from fedsens.sensitivity.capture.placing import record
from fedsens.sensitivity.capture.recorder import Use
from fedsens.sensitivity.capture.registry import Cotangent
from fedsens.sensitivity.capture.samples import SampleAxis
from fedsens.sensitivity.reentrant import refuse_reentrant
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
        head: backward passes that what lies below a linear last layer takes, if there is one.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    bytes: int
    each_row: int = 0
    once: int = 0
    head: int | None = None


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
        if tensor.layout != torch.strided:
            return tensor.detach()
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.data_ptr()] = min(tensor.nbytes, tensor.untyped_storage().nbytes())
        return tensor.detach()  # an output that its own node holds would never be freed

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        uses, z = _recorded(task, x)
    check_finite(z)
    if z.requires_grad:
        refuse_reentrant(z, task.parameters)
    each_row, once = z.numel(), [0]
    with torch.no_grad():
        for use in uses:
            row, fixed = _entries(use, wide(z.dtype))
            each_row += row
            once.append(fixed)
    small = sum(p.numel() for p in task.parameters.values() if p.ndim < 2)
    head = find_head(uses, z)
    return Footprint(
        tuple(z.shape[1:]),
        z.dtype,
        sum(kept.values()),
        each_row,
        max(once) + small,
        None if head is None else head.rows,
    )


def _recorded(task: Task, x: Inputs) -> tuple[list[Use], Tensor]:
    """One sample's operations and logits; no operations if the model does not bear the mode."""
    try:
        recorder, z = record(task, x, 1)
    except UNSUPPORTED:
        return [], task.alone(x)
    return recorder.uses, z


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
