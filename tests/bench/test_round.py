"""The round benchmark: what it counts, and that the rounds it times are real ones."""

import json
import logging

import pytest
import torch
from flwr.clientapp import ClientApp
from typer.testing import CliRunner

from fedsens.bench import _round as bench
from fedsens.bench._round import RoundReport, RoundRow
from fedsens.cli import app
from fedsens.errors import BenchmarkError, ConfigurationError
from fedsens.flower import SelectiveEncryption
from fedsens.protocol import KEY_BYTES

BLOCK = 4096


@pytest.fixture(scope="module")
def strategies():
    return []


@pytest.fixture(scope="module")
def report(strategies):
    def noted(*given):
        strategies.append(SelectiveEncryption(*given))
        return strategies[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "SelectiveEncryption", noted)
        return bench.bench_round("lenet", images=40, clients=2, ratios=(0.0, 0.1, 1.0), repeats=2)


def test_a_client_sends_and_gets_the_bytes_of_its_model(report):
    plain, zero, tenth, whole, opened = report.rows
    size = 4 * report.parameters
    for row in report.rows:
        assert row.bytes_up >= size * (1 - (row.ratio or 0))
    for one in (plain.bytes_up, plain.bytes_down, zero.bytes_up, zero.bytes_down):
        assert size <= one <= size + 10_000
    assert plain.bytes_up_encrypted == zero.bytes_up_encrypted == 0
    for row in (tenth, whole):
        padded = -(-int(row.ratio * report.parameters) // BLOCK) * BLOCK
        assert 4 * padded + KEY_BYTES <= row.bytes_up_encrypted <= 4 * padded + KEY_BYTES + 500
        assert 4 * padded <= row.bytes_down_encrypted <= 4 * padded + KEY_BYTES + 500
    assert whole.bytes_up_plain < 2500
    assert opened.bytes_up_encrypted == pytest.approx(whole.bytes_up_encrypted, rel=0.01)
    assert opened.bytes_down_encrypted == 0
    assert size <= opened.bytes_down <= size + 10_000


def test_the_rounds_are_encrypted_and_none_is_lost(report, strategies):
    for row, strategy in zip(report.rows[1:], strategies, strict=True):
        phases = [each for each in strategy.reports if each.phase == "train"]
        assert [each.clients for each in phases] == [2] * 4
        encrypted = int(row.ratio * report.parameters)
        assert phases[-1].encrypted_parameters == encrypted
        assert strategy.model.mask.k == (encrypted if row.opens == "clients" else 0)


def test_time_is_that_of_whole_rounds_without_training(report):
    assert report.training_seconds > 0
    assert all(0 < row.seconds < 30 for row in report.rows)
    assert report.rows[-2].seconds > report.rows[0].seconds  # 62,000 values encrypted, and none


def test_relative_costs_include_training():
    rows = RoundRow("plain", None, 100, 0, 200, 0, 1.0), RoundRow("r", 0.5, 50, 60, 150, 200, 3.0)
    report = RoundReport("m", 7, 2, 5, 4.5, rows)
    assert report.ratios(rows[0]) == {"up": 1, "down": 1, "both": 1, "time": 1}
    assert report.ratios(rows[1]) == {
        "up": 1.1,
        "down": 1.75,
        "both": pytest.approx(460 / 300),
        "time": 1.2,
    }


def test_torchs_state_and_flowers_log_level_stay(report):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    level = logging.getLogger("flwr").level
    bench.bench_round("lenet", images=4, clients=2, ratios=(), repeats=1)
    assert torch.equal(state, torch.get_rng_state())
    assert (torch.get_num_threads(), logging.getLogger("flwr").level) == (threads, level)


def test_a_lost_client_spoils_the_measurement(monkeypatch):
    def failing(protected):
        client = ClientApp(mods=[])

        @client.train()
        def train(message, context):
            raise RuntimeError("no training today")

        return client

    monkeypatch.setattr(bench, "moving_app", failing)
    with pytest.raises(BenchmarkError, match="expected 6 answers of clients at Flower FedAvg, got"):
        bench.bench_round("lenet", images=4, clients=2, ratios=(), repeats=1)


def test_an_unknown_model_is_refused():
    with pytest.raises(
        ConfigurationError, match="expected a model out of lenet, resnet18, got 'x'"
    ):
        bench.bench_round("x")


def test_the_command_shows_a_line_for_each_ratio_and_writes_the_figures(tmp_path):
    path = tmp_path / "round.json"
    options = ["--model", "lenet", "--images", "8", "--clients", "2", "--repeats", "1"]
    result = CliRunner().invoke(
        app, ["bench", "round", *options, "--ratio", "0.5", "--json", str(path)]
    )
    assert result.exit_code == 0, result.output
    assert "Flower FedAvg" in result.output
    assert "ratio 0.5" in result.output
    content = json.loads(path.read_text())
    assert [row["ratio"] for row in content["rows"]] == [None, 0.5, 1.0]
    assert content["rows"][1]["relative"]["up"] > 1
