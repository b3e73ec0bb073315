"""CPU time and peak memory of a piece of work."""

import gc
import logging
from functools import partial

import pytest
import torch

from fedsens.bench._measure import measuring, silence_logs, timed, timed_with_peak


def test_a_run_is_timed():
    run = timed(lambda: sum(range(200_000)))
    assert run.result == sum(range(200_000))
    assert run.seconds > 0
    assert run.peak is None


def test_peak_memory_is_that_of_the_run():
    size = 2**27

    def hold(size):
        # from the heap, where freed memory stays with the process unless it is given back first
        return len([torch.ones(2**14) for _ in range(size // 2**16)])

    # first twice as much: a high-water mark that nobody set back would show in the next runs
    peaks = [timed_with_peak(partial(hold, held)).peak for held in (2 * size, size, size)]
    if peaks[0] is None:
        pytest.skip("no /proc/self/clear_refs or no glibc here")
    assert 1.5 * size < peaks[0]
    for peak in peaks[1:]:
        assert 0.75 * size < peak < 1.5 * size


def test_measuring_is_undone():
    before = torch.get_num_threads()
    with measuring():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    assert gc.get_freeze_count() == 0


def test_logs_are_quiet_for_a_while():
    logger = logging.getLogger("fedsens")
    before = logger.level
    with silence_logs():
        assert not logger.isEnabledFor(logging.WARNING)
        assert logger.isEnabledFor(logging.ERROR)
    assert logger.level == before
