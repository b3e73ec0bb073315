"""How many samples fit in a memory budget when they run side by side."""

from __future__ import annotations

from fedsens.sensitivity.footprint import Footprint
from fedsens.sensitivity.task import Task, wide

CAPTURE_BUDGET = {"cpu": 2**30, "cuda": 2**33}
# bytes that one row's backward pass moves; more of them make it no faster (measured on a CPU)
PASS_BUDGET = {"cpu": 3 * 2**27, "cuda": 2**32}
FUNC_BUDGET = {"cpu": 96 * 2**20, "cuda": 2**30}
LARGEST_CHUNK = {"cpu": 128, "cuda": 512}


def _limit(limits: dict[str, int], task: Task) -> int:
    """What holds on the task's device; other kinds are taken for a CPU."""
    return limits.get(task.device.type, limits["cpu"])


def map_bytes(task: Task) -> int:
    """Memory that a map takes whatever the chunk.

    Args:
        task: the task.

    Returns:
        Bytes of the sums, and of the two copies made while the first samples are checked.
    """
    return 3 * sum(wide(p.dtype).itemsize * p.numel() for p in task.parameters.values())


def budget_of(task: Task, memory_budget: int | None) -> int:
    """Bytes that all rows of one sample may take.

    Args:
        task: the task.
        memory_budget: bytes above the loaded model, or None for a default per device.

    Returns:
        The budget.
    """
    return _limit(CAPTURE_BUDGET, task) if memory_budget is None else memory_budget


def capture_chunk(
    task: Task, seen: Footprint, rows: int, memory_budget: int | None, label_bytes: int = 0
) -> int:
    """Samples that the capture engine can take at a time.

    A sample holds its activations with their cotangents, one output gradient per row and operation,
    and the gradients of small parameters.

    Args:
        task: the task.
        seen: what one sample's forward pass keeps.
        rows: number of rows.
        memory_budget: bytes above the loaded model, or None for a default per device.
        label_bytes: what a sample's probes, or rows without a closed form, take.

    Returns:
        A number of samples; 0 if not even one fits.
    """
    item = wide(seen.dtype).itemsize
    room = budget_of(task, memory_budget)
    room -= 0 if memory_budget is None else map_bytes(task)
    one_row = 3 * seen.bytes + item * (2 * seen.each_row + 4 * seen.once)
    many_rows = item * 2 * (rows - 1) * seen.each_row + label_bytes
    # a default budget is meant for rows: a model that is larger by itself still runs
    least = 1 if memory_budget is None and many_rows <= room else 0
    fits = room // max(one_row + many_rows, 1)
    useful = max(1, _limit(PASS_BUDGET, task) // max(one_row, 1))
    return max(least, min(fits, useful, _limit(LARGEST_CHUNK, task)))


def func_chunk(task: Task, seen: Footprint, memory_budget: int | None) -> int:
    """Samples that the ``func`` engine can take at a time.

    A sample holds its gradients of one row, their accumulator and one temporary, and its
    activations with their cotangents. The sums take their place whatever the chunk.

    Args:
        task: the task.
        seen: what one sample's forward pass keeps.
        memory_budget: bytes above the loaded model, or None for a default per device.

    Returns:
        A number of samples, at least 1.
    """
    item = wide(seen.dtype).itemsize
    sums = 2 * item * task.size
    sample = 3 * item * task.size + 3 * seen.bytes
    room = _limit(FUNC_BUDGET, task) if memory_budget is None else memory_budget - sums
    return max(1, min(room // max(sample, 1), _limit(LARGEST_CHUNK, task)))
