"""The map benchmark: every rule beside training steps, on the cases asked for."""

import json

import pytest
import torch
from typer.testing import CliRunner

from fedsens.bench._cases import CASES
from fedsens.bench._map import RULES, STEP, bench_map
from fedsens.bench._tables import map_table
from fedsens.cli import app
from fedsens.sensitivity import sensitivity_map
from tests.experiments.benchmarks.helpers import case, perceptron


@pytest.fixture(scope="module")
def report():
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    report = bench_map(case(perceptron), repeats=2)
    assert torch.equal(state, torch.get_rng_state())
    assert threads == torch.get_num_threads()
    return report


def test_costs_are_relative_to_a_training_step(report):
    step, *rules = report.rows
    assert (step.name, step.steps, step.samples, step.engines) == (STEP, 1.0, 32, {})
    assert [row.name for row in rules] == [*RULES]
    for row in rules:
        assert row.samples == 4
        assert row.steps == row.ms_per_sample / step.ms_per_sample
        assert sum(row.engines.values()) == 4
    assert (report.parameters, report.classes) == (16 * 5 + 5 + 5 * 3 + 3, 3)


def test_what_is_timed_is_the_map(monkeypatch):
    made = []

    def noted(*given, **options):
        made.append(options)
        return sensitivity_map(*given, **options)

    monkeypatch.setattr("fedsens.bench._map.sensitivity_map", noted)
    bench_map(case(perceptron), samples=2, repeats=1)
    assert made == [*RULES.values()] * 2  # once to warm up


@pytest.mark.parametrize("width", [80, 100])
def test_the_table_is_not_cut(report, width):
    from rich.console import Console

    console = Console(record=True, width=width)
    console.print(map_table(report))
    text = console.export_text()
    assert "vector, 1 probe" in text
    assert "capture" in text
    assert "…" not in text


def test_the_command_measures_the_cases_asked_for(monkeypatch, tmp_path):
    monkeypatch.setitem(CASES, "tiny", case(perceptron))
    path = tmp_path / "map.json"
    arguments = ["bench", "map", "--case", "tiny", "--samples", "2", "--repeats", "1"]
    result = CliRunner().invoke(app, [*arguments, "--json", str(path)])
    assert result.exit_code == 0, result.output
    content = json.loads(path.read_text())
    assert [case["case"] for case in content["cases"]] == ["tiny"]
    assert content["environment"]["threads"] == 1
    assert "tiny model" in result.output


def test_an_unknown_case_is_one_sentence():
    result = CliRunner().invoke(app, ["bench", "map", "--case", "alexnet"])
    assert result.exit_code == 1
    assert "lenet28" in result.output
    assert "Traceback" not in result.output
