"""SecAgg+ as a comparison: it takes part, and a lost client spoils the measurement."""

import pytest
import torch

from experiments.benchmarks import secagg
from fedsens.bench._round import initial_state
from fedsens.errors import BenchmarkError


def test_secagg_sends_masked_vectors_of_the_whole_model():
    state = initial_state("lenet")
    row = secagg.measure_secagg(state, 2, 1)
    size = 4 * sum(value.numel() for value in state.values())
    assert (row.name, row.ratio) == ("Flower SecAgg+", None)
    assert row.bytes_up >= size
    assert row.bytes_down >= size


def test_a_client_lost_to_secagg_spoils_the_measurement(monkeypatch):
    def fail(self, parameters, config):
        raise RuntimeError("no training today")

    monkeypatch.setattr(secagg._Client, "fit", fail)
    with pytest.raises(BenchmarkError, match=r"expected 1 rounds of 2 clients, got \[\]"):
        secagg.measure_secagg({"weight": torch.zeros(10)}, 2, 1)
