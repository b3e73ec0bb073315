import json
import sys
from dataclasses import asdict

import pytest
import torch

from experiments.benchmarks import maps as bench
from experiments.benchmarks.methods import Method, chunks, zeros
from experiments.benchmarks.rows import LITERAL, PROBE, STEP, TRUE_LABEL, VECTOR
from experiments.cases import environment
from fedsens.errors import BenchmarkError
from tests.experiments.benchmarks.helpers import comparison, perceptron, residual

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report():
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    report = bench.compare_methods(comparison(perceptron), repeats=2)
    assert torch.equal(state, torch.get_rng_state())
    assert threads == torch.get_num_threads()
    return report


def test_every_method_has_a_row_or_a_reason(report):
    rows = [row.method for row in report.rows]
    assert len(set(rows)) == len(rows)
    assert {*rows} | {*report.absent} == {method.name for method in bench.METHODS} | {LITERAL}
    assert not {*rows} & {*report.absent}
    assert all("not installed" in reason for reason in report.absent.values())


def test_rows_are_sane(report):
    rows = {row.method: row for row in report.rows}
    assert (report.parameters, report.classes) == (16 * 5 + 5 + 5 * 3 + 3, 3)
    for row in report.rows:
        assert row.ms_per_sample > 0
        assert row.ratio == (
            None if row.versus is None else row.ms_per_sample / rows[row.versus].ms_per_sample
        )
        assert row.steps == row.ms_per_sample / rows[STEP].ms_per_sample
        assert row.same_as in {None, row.versus}
        assert row.extrapolated == (row.method == LITERAL)
    assert rows[VECTOR].rounds == 2
    assert rows[VECTOR].samples == 4
    assert rows[STEP].chunk == rows[STEP].samples == 32
    for name in (TRUE_LABEL, VECTOR, PROBE):
        assert rows[name].versus is rows[name].chunk is None
        assert sum(rows[name].engines.values()) == 4
    assert rows["torch.func vmap(jacrev)"].same_as == VECTOR


def test_the_report_is_json(report):
    content = json.loads(json.dumps({"case": asdict(report), "on": environment()}))
    assert content["on"]["torch"] == torch.__version__.partition("+")[0] or content["on"]["torch"]
    assert len(content["case"]["thresholds"]) == len(report.thresholds) == 8


def test_other_samples_can_be_asked_for():
    report = bench.compare_methods(comparison(perceptron), samples=1, repeats=1)
    assert {row.samples for row in report.rows if row.method != STEP} == {1}


def test_a_library_that_refuses_the_model_is_absent_with_its_reason():
    pytest.importorskip("opacus")
    report = bench.compare_methods(comparison(residual), repeats=1)
    assert "BatchNorm2d" in report.absent["Opacus x C"]


def test_a_missing_package_is_named(monkeypatch):
    for package in ("backpack", "opacus"):
        monkeypatch.setitem(sys.modules, package, None)
    report = bench.compare_methods(comparison(perceptron), repeats=1)
    reasons = report.absent
    assert [*reasons] == [m.name for m in bench.METHODS if m.name.startswith(("Back", "Opacus"))]
    assert "backpack is not installed: pip install 'fedsens[experiments]'" in reasons.values()
    missing = [each for each in report.thresholds if each.reached is None]
    assert [each.name.split()[0] for each in missing] == ["BackPACK", "BackPACK"]


def wrong(model, classes):
    """The mean's gradient instead of the gradients' mean size."""
    leaves = dict(model.named_parameters())

    def work(x, y, chunk):
        sums = zeros(leaves)
        for xs, ys in chunks(x, y, chunk):
            loss = torch.nn.functional.cross_entropy(model(xs), ys, reduction="sum")
            for name, g in zip(leaves, torch.autograd.grad(loss, [*leaves.values()]), strict=True):
                sums[name] += g.abs()
        return sums

    return work


def test_a_method_that_computes_something_else_is_an_error(monkeypatch):
    method = Method("wrong", "true_label", TRUE_LABEL, True, "one row", wrong)
    monkeypatch.setattr(bench, "METHODS", (*bench.METHODS[:3], method, bench.METHODS[-1]))
    tiny = comparison(perceptron, chunks={"one row": (3,), "all rows": (1,), "label rows": (1,)})
    with pytest.raises(BenchmarkError, match="expected wrong to compute the same number"):
        bench.compare_methods(tiny)
