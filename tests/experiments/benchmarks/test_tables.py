"""What the compared methods cost, and which thresholds hold, on the screen."""

import pytest
from rich.console import Console

from experiments.benchmarks.rows import STEP, VECTOR, MapRow, MethodsReport, ThresholdRow
from experiments.benchmarks.tables import methods_table, thresholds_table
from fedsens.bench._map import CASES


def shown(report, width=100):
    console = Console(record=True, width=width)
    console.print(methods_table(report), thresholds_table(report))
    return console.export_text()


@pytest.fixture
def report():
    def row(method, ratio, extrapolated=False):
        same = VECTOR if ratio else None
        return MapRow(
            method, "", same, 1e7, 1e9, same, ratio, 8, 3, 64, 12345.6, extrapolated=extrapolated
        )

    thresholds = [
        ThresholdRow("torch.func vmap(grad) / vector, 1 probe", 1.0, True, 1.25, True),
        ThresholdRow("fastest same number / vector, exact", 3.5, True, 2.5, False),
        ThresholdRow("BackPACK BatchDiagGGNExact / vector, exact", 1.5, True, None, None),
    ]
    rows = [row(VECTOR, None), row("literal double backward", 12345.0, True), row(STEP, None)]
    title = CASES["transformer"].title
    absent = {"Opacus x C": "refuses BatchNorm"}
    return MethodsReport("t", title, 10**7, 100, rows, absent, thresholds)


def test_a_case_fits_a_hundred_columns(report):
    text = shown(report)
    assert "literal double backward*" in text
    assert "12,345" in text
    assert "…" not in text
    assert all(len(line) <= 100 for line in text.splitlines())
    assert "Opacus x C is absent: refuses BatchNorm" in " ".join(text.split())


def test_each_threshold_has_its_verdict(report):
    lines = shown(report).splitlines()
    ends = {line.strip().partition("  ")[0]: line.strip().rsplit("  ", 1)[-1] for line in lines}
    assert ends["torch.func vmap(grad) / vector, 1 probe"] == "reached"
    assert ends["fastest same number / vector, exact"] == "not reached"
    assert ends["BackPACK BatchDiagGGNExact / vector, exact"] == "not measured"
