"""Experiments: an interrupted one goes on, and small ones run from end to end."""

import csv
import json

import pytest
from typer.testing import CliRunner

import experiments.accuracy.__main__ as accuracy
import experiments.clients.__main__ as clients
import experiments.models.__main__ as models
import experiments.ratios.__main__ as ratios
import experiments.remainder.__main__ as remainder
import experiments.staleness.__main__ as staleness
from experiments.cases import measure_cases
from experiments.federation import defaults
from experiments.models.shapes import MODELS, random_state, size_of

CASES = [{"n": 1, "kind": "a"}, {"n": 2, "kind": "a"}]


def test_an_interrupted_experiment_goes_on_where_it_was(tmp_path):
    measured = []

    def measure(case):
        if case["n"] == 2 and len(measured) == 1:
            measured.append(None)
            raise KeyboardInterrupt
        measured.append(case["n"])
        yield {"twice": 2.0 * case["n"]}

    with pytest.raises(KeyboardInterrupt):
        measure_cases(CASES, measure, "some", tmp_path)
    rows = measure_cases(CASES, measure, "some", tmp_path)
    assert measured == [1, None, 2]
    assert [row["twice"] for row in rows] == [2.0, 4.0]
    content = json.loads((tmp_path / "some.json").read_text())
    assert content["rows"] == rows
    assert content["environment"]["torch"]
    with (tmp_path / "some.csv").open() as file:
        assert list(csv.DictReader(file)) == [
            {"n": "1", "kind": "a", "twice": "2"},
            {"n": "2", "kind": "a", "twice": "4"},
        ]


def test_other_cases_are_kept_and_fresh_measures_anew(tmp_path):
    def once(case):
        return [{"value": len(seen)}]

    seen = []
    measure_cases(CASES, once, "some", tmp_path)
    seen.append(1)
    rows = measure_cases([{"n": 3, "kind": "a"}], once, "some", tmp_path)
    assert rows == [{"n": 3, "kind": "a", "value": 1}]
    assert len(json.loads((tmp_path / "some.json").read_text())["rows"]) == 3
    assert measure_cases(CASES, once, "some", tmp_path)[0]["value"] == 0
    assert measure_cases(CASES, once, "some", tmp_path, fresh=True)[0]["value"] == 1


def test_models_have_the_parameters_of_their_papers():
    sizes = {name: size_of(name) for name in MODELS}
    same = {name for name, size in sizes.items() if size == models.PAPER[name].parameters}
    assert same == set(MODELS) - {"ResNet-18"}  # the paper's has another head
    assert sizes["ResNet-18"] == 11_689_512
    assert sum(t.numel() for t in random_state("LeNet").values()) == sizes["LeNet"]


def test_the_app_runs_with_its_own_defaults():
    options = defaults()
    assert options["fedsens.ratio"] == 0.1
    assert "fedsens" not in options
    assert all(isinstance(value, str | int | float) for value in options.values())


def invoke(experiment, tmp_path, *options):
    result = CliRunner().invoke(experiment.app, [*options, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    name = experiment.__name__.split(".")[1]
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / f"{name}.csv").read_text()
    return result.output, json.loads((tmp_path / f"{name}.json").read_text())["rows"]


@pytest.mark.slow
def test_the_table_of_models(tmp_path):
    output, rows = invoke(models, tmp_path, "--model", "Linear", "--model", "LeNet")
    assert "88,648" in output
    assert [row["model"] for row in rows] == ["Linear", "LeNet"]
    assert 1 < rows[1]["down at 1"] < 1.2
    assert CliRunner().invoke(models.app, ["--model", "x"]).exit_code == 2


@pytest.mark.slow
def test_the_figure_of_ratios(tmp_path, monkeypatch):
    monkeypatch.setattr(ratios, "RATIOS", (0.0, 1.0))
    monkeypatch.setattr(ratios, "IMAGES", 8)
    _, rows = invoke(ratios, tmp_path, "--model", "lenet")
    assert [row["ratio"] for row in rows] == ["without fedsens", 0.0, 1.0]
    assert 1 < rows[2]["down"] / rows[0]["down"] < 1.3


@pytest.mark.slow
def test_the_figure_of_clients(tmp_path):
    _, rows = invoke(clients, tmp_path, "--parameters", "5000", "--clients", "2")
    found = [(row["ratio"], row["clients"]) for row in rows]
    assert found == [("without fedsens", 2), (0.1, 2), (1.0, 2)]


@pytest.mark.slow
def test_accuracy_does_not_depend_on_the_ratio(tmp_path):
    _, rows = invoke(accuracy, tmp_path, "--rounds", "1", "--clients", "2")
    for alpha in accuracy.ALPHAS:
        reached = [row["accuracy"] for row in rows if row["alpha"] == alpha]
        assert len(reached) == 3
        assert max(reached) - min(reached) <= 0.01


@pytest.mark.slow
def test_a_mask_grows_old(tmp_path):
    _, rows = invoke(staleness, tmp_path, "--rounds", "2", "--clients", "2")
    for rule in staleness.RULES:
        first, second = (row for row in rows if row["rule"] == rule)
        assert first["since first"] == first["since last"] == 0
        assert second["since first"] == second["since last"] > 0


@pytest.mark.slow
def test_ways_to_treat_the_remainder(tmp_path, monkeypatch):
    ways = {name: remainder.WAYS[name] for name in ("plain", "laplace 1", "withheld")}
    monkeypatch.setattr(remainder, "WAYS", ways)
    options = ("--rounds", "1", "--clients", "2", "--seeds", "1")
    output, rows = invoke(remainder, tmp_path, *options)
    assert "withheld" in output
    assert [row["way"] for row in rows] == list(ways)
    plain, noised, withheld = (row["up plain"] for row in rows)
    assert plain == pytest.approx(noised, rel=0.01)
    assert withheld < 1000
