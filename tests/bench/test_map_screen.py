import json

import pytest
from rich.console import Console
from typer.testing import CliRunner

from fedsens.bench.map_cases import CASES
from fedsens.bench.map_rows import STEP, VECTOR, CaseReport, GateRow, MapRow
from fedsens.bench.map_screen import case_tables
from fedsens.cli import app
from tests.bench.kit import case, perceptron


def shown(report, width=100):
    console = Console(record=True, width=width)
    console.print(*case_tables(report))
    return console.export_text()


@pytest.fixture
def report():
    def row(method, ratio, extrapolated=False):
        same = VECTOR if ratio else None
        return MapRow(
            method, "", same, 1e7, 1e9, same, ratio, 8, 3, 64, 12345.6, extrapolated=extrapolated
        )

    gates = [
        GateRow("torch.func vmap(grad) / vector, 1 probe", 1.0, True, 1.25, True),
        GateRow("fastest same number / vector, exact", 3.5, True, 2.5, False),
        GateRow("BackPACK BatchDiagGGNExact / vector, exact", 1.5, True, None, None),
    ]
    rows = [row(VECTOR, None), row("literal double backward", 12345.0, True), row(STEP, None)]
    title = CASES["transformer"].title
    return CaseReport("t", title, 10**7, 100, rows, {"Opacus x C": "refuses BatchNorm"}, gates)


def test_a_case_fits_a_hundred_columns(report):
    text = shown(report)
    assert "literal double backward*" in text
    assert "12,345" in text
    assert "…" not in text
    assert all(len(line) <= 100 for line in text.splitlines())
    assert "Opacus x C is absent: refuses BatchNorm" in " ".join(text.split())


def test_each_limit_has_its_verdict(report):
    lines = shown(report).splitlines()
    ends = {line.strip().partition("  ")[0]: line.strip().rsplit("  ", 1)[-1] for line in lines}
    assert ends["torch.func vmap(grad) / vector, 1 probe"] == "reached"
    assert ends["fastest same number / vector, exact"] == "not reached"
    assert ends["BackPACK BatchDiagGGNExact / vector, exact"] == "not measured"


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
