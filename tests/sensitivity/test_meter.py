"""What a map costs is told before and while it is paid, and nobody computes for nobody."""

import logging
import time

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fedsens.errors import MapTimeoutError, SensitivityError
from fedsens.sensitivity import _meter as meter
from fedsens.sensitivity import sensitivity_map
from fedsens.sensitivity._meter import total_samples
from tests.sensitivity.samples import assert_same, images, mini_cnn


class Language(nn.Module):
    """A table of words that is also the last layer."""

    def __init__(self, words):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.layer = nn.Embedding(words, 4), nn.Linear(4, 4)

    def forward(self, tokens):
        return torch.tanh(self.layer(self.embed(tokens))) @ self.embed.weight.T


def words(count, samples=4, length=3):
    x = torch.randint(count, (samples, length), generator=torch.Generator().manual_seed(1))
    return Language(count), [(x, x)]


def test_rows_are_exact_as_long_as_they_are_few(caplog):
    with caplog.at_level(logging.WARNING, "fedsens"):
        smap = sensitivity_map(*words(90), "token_cross_entropy")
    assert smap.meta["rows"] == "exact"
    assert not caplog.text


def test_beyond_that_they_are_probes_with_a_warning(caplog):
    model, batches = words(200)
    with caplog.at_level(logging.WARNING, "fedsens"):
        smap = sensitivity_map(model, batches, "token_cross_entropy")
    assert smap.meta["rows"] == 16
    assert "597 backward passes per sample, about 398 training steps" in caplog.text
    assert_same(smap, sensitivity_map(model, batches, "token_cross_entropy", rows=16))
    exact = sensitivity_map(model, batches, "token_cross_entropy", rows="exact")
    assert exact.meta["rows"] == "exact"


def test_too_many_exact_rows_are_an_error_with_a_way_out():
    model, batches = words(60_000)
    with pytest.raises(SensitivityError, match=r"got 179,997 with rows='exact'.*rows=16"):
        sensitivity_map(model, batches, "token_cross_entropy", rows="exact")


def test_many_classes_are_exact_where_the_last_layer_is_narrow(caplog):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 20_000))
    batch = torch.randn(3, 4), torch.randint(20_000, (3,))
    with caplog.at_level(logging.WARNING, "fedsens"):
        smap = sensitivity_map(model, [batch])
    assert smap.meta["rows"] == "exact"
    assert not caplog.text


def test_a_wide_last_layer_of_a_loss_without_closed_form_must_fit_the_budget():
    model = nn.Linear(4, 3000)
    batch = torch.randn(2, 4), torch.rand(2, 3000)
    with pytest.raises(SensitivityError, match=r"rows of the loss .* 72 MB per sample"):
        sensitivity_map(model, [batch], nn.HuberLoss(), rows="exact", memory_budget=10_000_000)


def test_progress_is_told_after_every_chunk():
    told = []
    x, y = images(10)
    smap = sensitivity_map(mini_cnn(), [(x, y)], chunk=4, progress=told.append)
    assert [now.samples for now in told] == [4, 8, 10]
    assert {(now.total, now.passes, now.exact, now.chunk) for now in told} == {(10, 4, True, 4)}
    assert told[-1].seconds_left == 0
    assert smap.count == 10
    halves = []
    sensitivity_map(mini_cnn(), [(x, y)], halves=True, progress=halves.append)
    assert halves[-1].samples == 10


def test_a_long_map_is_announced(caplog, monkeypatch):
    monkeypatch.setattr(meter, "LONG", 0.0)
    with caplog.at_level(logging.WARNING, "fedsens"):
        sensitivity_map(mini_cnn(), [images(6)], chunk=2)
    assert "4 backward passes per sample" in caplog.text


@pytest.mark.parametrize("engine", ["capture", "func", "loop"])
def test_a_map_is_given_up_once_its_time_is_over(engine):
    model, (x, y) = mini_cnn(), images(10)

    def slow(model, inputs):
        time.sleep(0.02)
        return model(inputs)

    with pytest.raises(MapTimeoutError, match=r"within 0\.05 s") as told:
        sensitivity_map(model, [(x, y)] * 50, forward=slow, engine=engine, chunk=2, timeout=0.05)
    assert told.value.seconds < 5
    assert told.value.samples < 500


def test_the_number_of_samples_is_known_without_reading_them():
    data = TensorDataset(torch.zeros(10, 2), torch.zeros(10))
    assert total_samples(DataLoader(data, batch_size=3)) == 10
    assert total_samples(DataLoader(data, batch_size=3, drop_last=True)) == 9
    assert total_samples([(torch.zeros(4, 1), torch.zeros(4))] * 2) == 8
    assert total_samples(iter([])) is None
