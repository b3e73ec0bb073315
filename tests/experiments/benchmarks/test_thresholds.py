import pytest

from experiments.benchmarks.maps import METHODS
from experiments.benchmarks.rows import LITERAL, PROBE, STEP, TRUE_LABEL, VECTOR, MapRow
from experiments.benchmarks.thresholds import judge

COSTS = {
    TRUE_LABEL: 2.0,
    VECTOR: 10.0,
    PROBE: 3.5,
    "torch.func vmap(grad)": 3.0,
    "torch.func vmap(jacrev)": 60.0,
    "Opacus x C": 35.0,
    "BackPACK BatchDiagGGNExact": 15.0,
    "BackPACK DiagGGNExact": 11.9,
    STEP: 1.0,
    LITERAL: 99_999.0,
}


def row(method, cost):
    known = {known.name: known for known in METHODS}
    same = VECTOR if method == LITERAL or (known[method].same and cost > 3) else None
    return MapRow(method, "", same, cost, cost, None, None, 1, 1, None, None, method == LITERAL)


def judged(kind="cnn", **changes):
    rows = [row(method, cost) for method, cost in COSTS.items() if method not in changes]
    return {gate.name: gate for gate in judge(rows, kind)}


def test_every_limit_is_held_against_its_ratio():
    gates = judged()
    found = {name: (gate.measured, gate.limit, gate.reached) for name, gate in gates.items()}
    assert found == {
        "BackPACK BatchDiagGGNExact / vector, exact": (1.5, 1.5, True),
        "BackPACK DiagGGNExact / vector, exact": (1.19, 1.2, False),
        "fastest same number / vector, exact": (3.5, 3.5, True),
        "literal double backward / vector, exact": (9_999.9, 1e4, False),
        "torch.func vmap(grad) / true_label": (1.5, 1.0, True),
        "torch.func vmap(grad) / vector, 1 probe": (pytest.approx(3 / 3.5), 1.0, False),
        "true_label, training steps": (2.0, 3, True),
        "vector, 1 probe, training steps": (3.5, 3, False),
    }


def test_transformers_have_limits_of_their_own():
    gates = judged("transformer")
    assert len(gates) == 4
    assert gates["true_label, training steps"].reached
    assert gates["true_label, training steps"].limit == 2


def test_what_is_absent_is_not_judged():
    gate = judged(**{"BackPACK BatchDiagGGNExact": None})[
        "BackPACK BatchDiagGGNExact / vector, exact"
    ]
    assert gate.measured is gate.reached is None


def test_the_literal_loop_is_no_rival():
    gate = judged(**{"torch.func vmap(jacrev)": None, "Opacus x C": None})[
        "fastest same number / vector, exact"
    ]
    assert gate.measured is None


def test_the_gates_name_methods_that_exist():
    names = {method.name for method in METHODS} | {LITERAL}
    assert names >= COSTS.keys()
    assert judge([row(method, 1.0) for method in COSTS], "cnn")[0].measured == 1.0
