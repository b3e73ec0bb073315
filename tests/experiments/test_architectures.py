"""The table of architectures and the planted faults, on a few small cases of each."""

import pytest

from experiments.architectures import __main__ as architectures
from experiments.architectures import faults


@pytest.mark.parametrize(
    ("name", "outcome"),
    [("linear", "exact"), ("checkpoint, reentrant", "refused"), ("none", "does not run")],
)
def test_a_map_is_compared_with_the_definition(name, outcome):
    (row,) = architectures._measure({"family": "by hand", "architecture": name})
    assert row["outcome"] == outcome
    assert architectures._line({"architecture": name, **row})[:2] == (name, outcome)


def test_a_map_that_is_wrong_or_late_is_told(monkeypatch):
    case = {"family": "by hand", "architecture": "linear"}
    monkeypatch.setattr(architectures, "TIMEOUT", 1e-9)
    (late,) = architectures._measure(case)
    assert late["outcome"] == "crashed"
    monkeypatch.undo()
    literal = architectures._literal
    monkeypatch.setattr(
        architectures, "_literal", lambda *given: {n: 1.1 * v for n, v in literal(*given).items()}
    )
    (wrong,) = architectures._measure(case)
    assert wrong["outcome"] == "WRONG"
    assert wrong["error"] == pytest.approx(0.1 / 1.1)


@pytest.mark.parametrize("decides", [False, True])
def test_a_fault_in_all_samples_is_found(monkeypatch, decides):
    monkeypatch.setattr(faults, "SAMPLES", 16)
    monkeypatch.setattr(faults, "BATCH", 8)
    assert all(faults._found(seed, 1.0, "every", decides) for seed in range(6))
