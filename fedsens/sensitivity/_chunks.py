"""What one sample keeps for its backward passes, and how many fit in a memory budget."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsens.errors import SensitivityError
from fedsens.sensitivity._batching import Inputs
from fedsens.sensitivity._preserve import refuse_reentrant
from fedsens.sensitivity._task import Task, accumulation_dtype, check_finite
from fedsens.sensitivity._tolerance import UNSUPPORTED, Uncovered
from fedsens.sensitivity.capture._head import find_head
from fedsens.sensitivity.capture._recorder import Operation
from fedsens.sensitivity.capture._registry import Cotangent, Outer, SampleAxis
from fedsens.sensitivity.capture._verify import differ, record

# how often a sample is run again if random numbers were drawn: a layer may be left out by chance
DRAWN_RUNS = 4


@dataclass(frozen=True)
class MemoryProfile:
    """What a forward pass of one sample shows.

    Attributes:
        shape: shape of the logits without batch axis.
        dtype: their type.
        bytes: memory that the sample keeps for its backward pass.
        each_row: entries that capturing keeps for each row: output gradients.
        once: entries that capturing keeps whatever the number of rows: gradients of small
            parameters, and the largest unfolded input.
        head: most backward passes that what lies below a linear last layer takes, if there is one.
        depends: whether the logits have a gradient.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    bytes: int
    each_row: int = 0
    once: int = 0
    head: int | None = None
    depends: bool = True


def memory_profile(task: Task, x: Inputs) -> MemoryProfile:
    """Run one sample forward and see what it gives and keeps."""
    weights = {p.untyped_storage().data_ptr() for p in task.model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.layout != torch.strided:
            return tensor.detach()
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.data_ptr()] = min(tensor.nbytes, tensor.untyped_storage().nbytes())
        return tensor.detach()  # an output that its own node holds would never be freed

    before = _random_states(task)
    try:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            operations, z = _recorded(task, x)
    except SensitivityError:  # torch.func.grad inside of the model refuses hooks
        operations, z = _recorded(task, x)
        kept = {0: budget_of(task, None)}  # unknown, so one sample at a time
    check_finite(z)
    # a generator of the model's own shows in what it draws only
    _check_repeatable(task, x, z, 1 if before == _random_states(task) else DRAWN_RUNS)
    if z.requires_grad:
        refuse_reentrant(z, task.parameters)
    each_row, once = z.numel(), [0]
    with torch.no_grad():
        for one in operations:
            row, fixed = _entries(one, accumulation_dtype(z.dtype))
            each_row += row
            once.append(fixed)
    small = sum(p.numel() for p in task.parameters.values() if p.ndim < 2)
    head = find_head(operations, z)
    return MemoryProfile(
        tuple(z.shape[1:]),
        z.dtype,
        sum(kept.values()),
        each_row,
        max(once) + small,
        None if head is None else head.inputs.numel(),
        z.requires_grad,
    )


def _random_states(task: Task) -> list[Any]:
    """What tells whether random numbers were drawn, by torch, NumPy or Python."""
    states = [torch.get_rng_state()]
    if task.device.type == "cuda":
        states.append(torch.cuda.get_rng_state(task.device))
    drawn = [state.numpy().tobytes() for state in states]
    _, keys, *rest = np.random.get_state()
    return [*drawn, random.getstate(), np.asarray(keys).tobytes(), rest]


def _check_repeatable(task: Task, x: Inputs, z: Tensor, runs: int) -> None:
    """Check that random numbers drawn in eval mode do not change the logits."""
    for _ in range(runs):
        # with gradients, which some models take inside
        if differ(z, [task.per_sample_logits(x)]):
            raise SensitivityError(
                "expected a model that gives the same logits for the same inputs in eval mode, got "
                "others in a second run; a random layer is on in eval mode, such as "
                "F.dropout(x, training=True): give it training=self.training, or fix what it draws "
                "in forward=lambda model, x: ...; or a pass changes what the next one uses, such "
                "as an observer of quantisation: switch it off (disable_observer)"
            )


def _recorded(task: Task, x: Inputs) -> tuple[list[Operation], Tensor]:
    """One sample's operations and logits; no operations if the model does not bear the mode."""
    try:
        recorder, z = record(task, x, 1)
    except Uncovered:
        return [], task.per_sample_logits(x)
    return recorder.operations, z


def _entries(operation: Operation, dtype: torch.dtype) -> tuple[int, int]:
    """Entries that capturing an operation keeps for each row, and once."""
    tensors = (v for v in operation.arguments.values() if isinstance(v, Tensor))
    zero = torch.zeros(operation.shape, dtype=dtype, device=next(tensors).device)
    try:
        gradients = operation.from_cotangent(Cotangent(zero[None], SampleAxis(0))).values()
    except UNSUPPORTED:  # its samples may be elsewhere: this is an estimate, the check tells
        return 0, 0
    row = once = 0
    for gradient in gradients:
        if isinstance(gradient, Tensor):
            once += gradient.numel()
        elif isinstance(gradient, Outer) and gradient.positions > 1:
            row += gradient.d.numel()
            once += gradient.a(slice(None)).numel()
    return row, once


CAPTURE_BUDGET = {"cpu": 2**30, "cuda": 2**33}
# bytes that one row's backward pass moves; more of them make it no faster (measured on a CPU)
PASS_BUDGET = {"cpu": 3 * 2**27, "cuda": 2**32}
FUNC_BUDGET = {"cpu": 96 * 2**20, "cuda": 2**30}
LARGEST_CHUNK = {"cpu": 128, "cuda": 512}


def _limit(limits: dict[str, int], task: Task) -> int:
    """What holds on the task's device; other kinds are taken for a CPU."""
    return limits.get(task.device.type, limits["cpu"])


def map_bytes(task: Task) -> int:
    """Memory that a map takes whatever the chunk."""
    return 3 * sum(
        accumulation_dtype(p.dtype).itemsize * p.numel() for p in task.parameters.values()
    )


def budget_of(task: Task, memory_budget: int | None) -> int:
    """Bytes that all rows of one sample may take."""
    return _limit(CAPTURE_BUDGET, task) if memory_budget is None else memory_budget


def capture_chunk(
    task: Task, seen: MemoryProfile, rows: int, memory_budget: int | None, label_bytes: int = 0
) -> int:
    """Samples that the capture engine can take at a time.

    A sample holds its activations with their cotangents, one output gradient per row and operation,
    and the gradients of small parameters.
    """
    item = accumulation_dtype(seen.dtype).itemsize
    room = budget_of(task, memory_budget)
    room -= 0 if memory_budget is None else map_bytes(task)
    one_row = 3 * seen.bytes + item * (2 * seen.each_row + 4 * seen.once)
    many_rows = item * 2 * (rows - 1) * seen.each_row + label_bytes
    # a default budget is meant for rows: a model that is larger by itself still runs
    least = 1 if memory_budget is None and many_rows <= room else 0
    fits = room // max(one_row + many_rows, 1)
    useful = max(1, _limit(PASS_BUDGET, task) // max(one_row, 1))
    return max(least, min(fits, useful, _limit(LARGEST_CHUNK, task)))


def func_chunk(task: Task, seen: MemoryProfile, memory_budget: int | None) -> int:
    """Samples that the ``func`` engine can take at a time.

    A sample holds its gradients of one row, their accumulator and one temporary, and its
    activations with their cotangents. The sums take their place whatever the chunk.
    """
    item = accumulation_dtype(seen.dtype).itemsize
    sums = 2 * item * task.size
    sample = 3 * item * task.size + 3 * seen.bytes
    room = _limit(FUNC_BUDGET, task) if memory_budget is None else memory_budget - sums
    return max(1, min(room // max(sample, 1), _limit(LARGEST_CHUNK, task)))
