"""The scale benchmark: real federations, in processes of their own."""

import json

import pytest
from flwr.serverapp.strategy import FedAvg
from typer.testing import CliRunner

from fedsens.bench import _scale as scale
from fedsens.cli import app
from fedsens.errors import BenchmarkError


@pytest.mark.slow
@pytest.mark.slow  # six processes
def test_every_federation_of_both_sweeps_is_measured(tmp_path):
    arguments = ["--parameters", "5000", "--clients", "3", "--json", str(tmp_path / "s.json")]
    result = CliRunner().invoke(app, ["bench", "scale", *arguments], env={"COLUMNS": "90"})
    assert result.exit_code == 0, result.output
    sweeps = json.loads((tmp_path / "s.json").read_text())
    made = {n: [(r["parameters"], r["clients"], r["ratio"]) for r in s] for n, s in sweeps.items()}
    assert made == {
        "parameters": [(5000, 2, 1.0)],
        "clients": [(2**18, 3, 1.0)],
        "clients, plain": [(2**18, 3, None)],
    }
    rows = [row for sweep in sweeps.values() for row in sweep]
    assert all(row["server_seconds"] > 0 and row["client_seconds"] > 0 for row in rows)
    assert all(row["server_peak"] > 2**26 and row["client_peak"] > 2**26 for row in rows)
    for row in rows:
        assert f"{row['server_peak'] / 2**20:,.0f}" in result.output


def test_a_lost_client_spoils_the_measurement(monkeypatch):
    def all_but_one(strategy, *given):
        return list(FedAvg.configure_train(strategy, *given))[:-1]

    monkeypatch.setattr(scale.Stopwatch, "_configure_train", all_but_one)
    with pytest.raises(BenchmarkError, match="expected 8 answers of clients, got 6"):
        scale._measure(100, 4, 1.0)
