"""The map benchmark: every rule beside training steps, on the cases asked for."""

import json
import sys

import pytest
import torch
from typer.testing import CliRunner

from fedsens.bench._map import CASES, RULES, STEP, bench_map, chosen_cases
from fedsens.bench._tables import map_table
from fedsens.cli import app
from fedsens.errors import ConfigurationError
from fedsens.sensitivity import sensitivity_map
from tests.experiments.benchmarks.helpers import case, perceptron

PARAMETERS = {
    "lenet28": 61_706,
    "lenet-100": 69_656,
    "resnet18-10": 11_173_962,
    "resnet18-100": 11_220_132,
    "transformer": 3_424_772,
    "hf-bert": 942_724,
    "hf-vit": 208_074,
}


@pytest.mark.parametrize("name", CASES)
def test_a_case_is_what_its_title_says(name, monkeypatch):
    case = CASES[name]
    if case.extra:
        monkeypatch.setitem(sys.modules, "torchvision", None)  # a broken one must not stop it
        pytest.importorskip("transformers")
    state = torch.get_rng_state()
    model, x, y = case.make(2)
    assert torch.equal(state, torch.get_rng_state())
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    assert not any(module.training for module in model.modules())
    with torch.no_grad():
        assert model(x).shape == (2, case.classes)
    assert f"{case.classes} classes" in case.title
    assert y.shape == (2,)
    again = case.make(2)
    assert torch.equal(x, again[1])
    assert all(map(torch.equal, model.parameters(), again[0].parameters()))


def test_samples_of_a_transformer_do_not_interact():
    model, x, _ = CASES["transformer"].make(3)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[1:2], model(x[1:2]))


def test_cases_are_chosen_by_name():
    assert chosen_cases([]) == list(CASES.values())[:5]
    assert chosen_cases(["hf-vit"]) == [CASES["hf-vit"]]
    assert chosen_cases(["transformer"]) == [CASES["transformer"]]
    with pytest.raises(ConfigurationError, match="got alexnet; choose"):
        chosen_cases(["lenet28", "alexnet"])


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
