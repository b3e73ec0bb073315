"""CPU time and peak memory of a piece of work in this process."""

from __future__ import annotations

import ctypes
import gc
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch

T = TypeVar("T")
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Run(Generic[T]):
    """One run.

    Attributes:
        result: what the work returned.
        seconds: CPU time of the process, so that other load on the machine does not count.
        peak: bytes of memory above what was held before; None where not measured.
    """

    result: T
    seconds: float
    peak: int | None = None


def timed(work: Callable[[], T]) -> Run[T]:
    """Run once: the result and the CPU time."""
    gc.collect()
    start = time.process_time()
    result = work()
    return Run(result, time.process_time() - start)


def timed_with_peak(work: Callable[[], T]) -> Run[T]:
    """Run once and watch the resident memory, on Linux with glibc.

    Freed memory goes back to the system first, so that the peak is not hidden in what earlier
    work left behind. The run is slower for it: every page has to be mapped anew.
    """
    gc.collect()
    before = _start_watching()
    run = timed(work)
    return Run(run.result, run.seconds, None if before is None else _status("VmHWM") - before)


def peak_of_process() -> int | None:
    """Bytes of memory that this process has held at most; None where the system does not tell."""
    try:
        return _status("VmHWM")
    except OSError:
        return None


@contextmanager
def measuring() -> Iterator[None]:
    """Let torch compute on one thread, and spare the garbage collector what is there already."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        torch.set_num_threads(threads)


@contextmanager
def silence_logs() -> Iterator[None]:
    """Leave out what Flower and fedsens say of every round and of the result; errors stay."""
    loggers = [logging.getLogger(name) for name in ("flwr", "fedsens")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _start_watching() -> int | None:
    """Set the high-water mark of the resident memory back to now; None where that cannot be."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        CLEAR.write_text("5")
    except (AttributeError, OSError, TypeError):
        return None
    return _status("VmRSS")


def _status(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])
