import pytest
import torch

from experiments.benchmarks import interleaved
from experiments.benchmarks.interleaved import (
    BenchmarkedMethod,
    Limits,
    check_same,
    run_interleaved,
)
from experiments.benchmarks.methods import Method
from fedsens.bench._measure import Run
from fedsens.errors import BenchmarkError

X, Y = torch.zeros(64, 1), torch.zeros(64)


@pytest.fixture
def clock(monkeypatch):
    """Time that a work reports itself, instead of the processor's."""

    def measure(work):
        seconds = work()
        return Run(seconds, seconds, 1000)

    monkeypatch.setattr(interleaved, "timed", measure)
    monkeypatch.setattr(interleaved, "timed_with_peak", measure)


def benchmarked(cost, counts="all rows"):
    """A method that takes ``cost(chunk)`` seconds a sample."""
    method = Method("m", "vector", None, False, counts, lambda model, classes: None)
    return BenchmarkedMethod(method, lambda x, y, chunk: cost(chunk) * len(x))


def tuned(cost, chunks, counts="all rows", limit=1e9):
    it = benchmarked(cost, counts)
    it.warm_up(X[:2], Y[:2], chunks[0])
    it.tune(X, Y, chunks, Limits(3, limit))
    return it


@pytest.mark.usefixtures("clock")
def test_the_cheapest_chunk_wins_and_samples_are_whole_chunks():
    it = tuned(lambda chunk: {4: 0.3, 12: 0.1, 32: 0.2}[chunk], (4, 12, 32))
    assert (it.chunk, it.samples) == (12, 60)


@pytest.mark.usefixtures("clock")
def test_a_slow_method_gets_fewer_samples_smaller_chunks_and_one_round():
    it = tuned(lambda chunk: 3.0, (1, 2, 4), limit=40)  # 40 s / 6 runs / 3 s: 2 samples
    assert (it.samples, it.per_sample) == (2, [])
    assert it.chunk in {1, 2}
    fast = tuned(lambda chunk: 0.01, (1, 2, 4), limit=40)
    it.spent = 40.0
    run_interleaved([it, fast], X, Y, Limits(3, 40))
    assert (len(it.per_sample), len(fast.per_sample)) == (1, 3)
    assert it.seconds == pytest.approx(3.0)


@pytest.mark.usefixtures("clock")
def test_a_first_run_beyond_the_limit_is_the_only_one():
    it = tuned(lambda chunk: 100.0, (1, 2), limit=150)
    run_interleaved([it], X, Y, Limits(3, 150))
    assert (it.samples, it.chunk, it.spent, it.per_sample) == (2, 1, 200.0, [100.0])
    assert it.peak == 1000


@pytest.mark.usefixtures("clock")
def test_the_only_affordable_chunk_is_not_tried_twice():
    it = tuned(lambda chunk: 10.0, (2,), limit=50)
    assert (it.samples, it.chunk, it.spent) == (2, 2, 20.0)


@pytest.mark.usefixtures("clock")
def test_a_chunk_above_the_samples_there_are_is_cut():
    it = benchmarked(lambda chunk: 1.0)
    it.warm_up(X[:1], Y[:1], 32)
    it.tune(X[:1], Y[:1], (32, 64), Limits(3, 1e9))
    assert (it.samples, it.chunk) == (1, 1)


@pytest.mark.usefixtures("clock")
def test_label_rows_are_no_samples():
    it = tuned(lambda chunk: 1 / chunk, (25, 100), "label rows", limit=1e9)
    assert (it.samples, it.chunk) == (64, 100)


@pytest.mark.usefixtures("clock")
def test_a_method_that_chooses_itself_gets_all_samples_at_once():
    it = tuned(lambda chunk: 0.1, (32,), "own")
    assert (it.samples, it.chunk) == (64, 64)


def test_the_same_number_is_the_same_up_to_rounding():
    expected = {"a": torch.rand(50) + 0.1, "b": torch.full((5,), 1e-9)}
    check_same("m", {"a": expected["a"] * (1 + 1e-5), "b": torch.zeros(5)}, expected)


@pytest.mark.parametrize(
    "change",
    [lambda a: a * 1.01, lambda a: a.square(), lambda a: a * float("nan")],
    ids=["one percent", "squares", "nan"],
)
def test_another_number_is_an_error(change):
    expected = {"a": torch.rand(50) + 0.1}
    with pytest.raises(BenchmarkError, match="difference in a"):
        check_same("m", {"a": change(expected["a"])}, expected)


def test_a_missing_parameter_is_an_error():
    with pytest.raises(BenchmarkError, match="differs in b"):
        check_same("m", {"a": X}, {"a": X, "b": X})
