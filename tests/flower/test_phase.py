"""A phase: when a model counts as refused, and when it no longer can."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsens.flower._phase import Phase, listed
from fedsens.flower._records import MODEL_REFUSED, REFUSED

ANSWERS = st.lists(st.sampled_from(["accepts", "refuses", "fails", "silent"]), max_size=12)


def phase_of(answers, asked):
    """A phase of which some nodes have answered so far."""
    phase = Phase("train", 1, "training", [None] * asked)
    codes = {"refuses": MODEL_REFUSED, "fails": REFUSED}
    for node, answer in enumerate(answers):
        if answer in codes:
            phase.errors[node] = SimpleNamespace(error=SimpleNamespace(code=codes[answer]))
        phase.accepted += answer == "accepts"
    return phase


@given(came=ANSWERS, later=ANSWERS, least=st.integers(2, 6))
def test_a_safe_model_stays_so_whatever_else_arrives(came, later, least):
    asked = len(came) + len(later)
    if phase_of(came, asked).model_is_safe(least):
        assert not phase_of([*came, *later], asked).model_is_refused(least)


@given(came=ANSWERS, least=st.integers(2, 6), asked=st.integers(1, 12))
def test_a_model_is_not_safe_while_the_others_could_refuse_it(came, least, asked):
    came = came[:asked]
    rest = ["refuses"] * (asked - len(came))
    everybody_decides = not {"fails", "silent"} & {*came}
    lone = asked <= 2  # one opinion alone decides nothing
    if everybody_decides and rest and not lone and not phase_of(came, asked).model_is_safe(least):
        assert phase_of([*came, *rest], asked).model_is_refused(least)


@pytest.mark.parametrize(
    ("answers", "safe"), [([], False), (["accepts"], False), (["accepts"] * 2, True)]
)
def test_of_two_clients_the_word_of_one_makes_it_not_safe(answers, safe):
    assert phase_of(answers, 2).model_is_safe(3) == safe


def test_reasons_that_differ_are_listed_up_to_a_number():
    told = listed({node: f"of type {node % 10}" for node in range(1000, 1012)})
    assert told.startswith("node 1000: of type 0 (and 1 more node); node 1001: of type 1 (and 1")
    assert told.endswith("node 1007: of type 7; and 2 other reasons")
    assert listed({}) == "no answer came in time"
