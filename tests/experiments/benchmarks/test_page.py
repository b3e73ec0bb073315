"""The page of all benchmarks, and the command that measures them."""

import json

import pytest
from typer.testing import CliRunner

from experiments.benchmarks import __main__ as benchmarks
from experiments.benchmarks.page import SECTIONS, benchmark_page
from experiments.benchmarks.rows import STEP
from tests.experiments.benchmarks.helpers import comparison, perceptron


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(benchmarks.COMPARISONS, "tiny", comparison(perceptron))


@pytest.mark.usefixtures("tiny")
def test_the_page_has_the_tables_that_the_terminal_shows():
    result = benchmarks.maps(["tiny"], 2, 1)
    page = benchmark_page({"map": result.tables})
    assert page.startswith("# Benchmarks\n")
    command = "`python -m experiments.benchmarks map`"
    assert f"## Sensitivity maps\n\n{command}, figures in [map.json](map.json)" in page
    for row in result.content["cases"][0]["rows"]:
        assert row["method"] in page
    assert "torch 2." in page


@pytest.mark.usefixtures("tiny")
def test_one_part_is_measured_without_touching_the_page(tmp_path):
    arguments = ["map", "--case", "tiny", "--samples", "1", "--repeats", "1"]
    result = CliRunner().invoke(benchmarks.app, [*arguments, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert STEP in result.output
    content = json.loads((tmp_path / "map.json").read_text())
    assert [case["case"] for case in content["cases"]] == ["tiny"]
    assert not (tmp_path / "README.md").exists()


@pytest.mark.slow
def test_a_round_has_secagg_beside_it():
    content = benchmarks.rounds(1, "lenet", images=4, clients=2).content
    names = [row["name"] for row in content["rows"]]
    assert (names[0], names[-1]) == ("Flower FedAvg", "Flower SecAgg+")
    assert content["rows"][-1]["relative"]["up"] > 1
    assert names[-2] == "ratio 1, compact"
    assert content["rows"][-2]["relative"]["up"] < content["rows"][-3]["relative"]["up"]
    assert set(content["planned"]) == set(names[1:-2])


@pytest.mark.parametrize("arguments", [["maps"], ["map", "--case", "alexnet"]])
def test_an_unknown_part_or_case_is_named(arguments):
    result = CliRunner().invoke(benchmarks.app, arguments)
    assert result.exit_code == 2
    assert arguments[-1] in result.output


def test_every_benchmark_has_a_section():
    assert set(SECTIONS) == {"codec", "round", "scale", "map"}
