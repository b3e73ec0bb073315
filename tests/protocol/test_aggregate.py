"""A sum of uploads: its parts, how key answers add up, and how many tags it has."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedsens.crypto import PRESETS, CkksParameters
from fedsens.errors import ProtocolError
from fedsens.protocol import (
    KEY_BYTES,
    Aggregate,
    AggregateHeader,
    Contributor,
    Contributors,
    sum_answers,
    tag_count,
)
from tests.keys.uploads import context_of, sender

CONTEXT = context_of([sender(0), sender(1)])
LIST = Contributors.of(
    Contributor(name=sender(number).name, weight=weight, nonce="07" * 16)
    for number, weight in enumerate((0.25, 0.5))
)
HEADER = AggregateHeader(
    context=CONTEXT, contributors=LIST, tags=(1, 2), fingerprint=CONTEXT.fingerprint
)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_answers_are_added_modulo_two_to_the_sixteen(clients, seed):
    rng = np.random.default_rng(seed)
    answers = [rng.integers(0, 2**16, KEY_BYTES // 2) for _ in range(clients)]
    total = sum_answers(each.astype("<u2").tobytes() for each in answers)
    expected = [sum(map(int, column)) % 2**16 for column in zip(*answers, strict=True)]
    found = np.frombuffer(total, "<u2").tolist()
    assert found == (expected or [0] * (KEY_BYTES // 2))


def test_answers_are_left_as_they_are():
    one = np.full(KEY_BYTES // 2, 60_000, "<u2").tobytes()
    assert sum_answers([one, one]) == np.full(KEY_BYTES // 2, 54_464, "<u2").tobytes()
    assert one == np.full(KEY_BYTES // 2, 60_000, "<u2").tobytes()


@pytest.mark.parametrize("preset", PRESETS)
def test_there_are_as_many_tags_as_96_bits_need_and_no_more(preset):
    parameters = CkksParameters.preset(preset)
    chance = Fraction(2, parameters.wire_modulus)  # of a forgery to pass one tag
    count = tag_count(parameters)
    assert chance**count <= Fraction(1, 2**96)
    # One bit of room for each tag, because the count goes by whole bits of the modulus.
    assert chance ** (count - 1) > Fraction(1, 2 ** (96 + count))
    assert count <= 16  # what a header holds


@pytest.mark.parametrize("size", [0, KEY_BYTES - 1, KEY_BYTES + 1])
def test_a_key_sum_of_another_length_is_refused(size):
    Aggregate(HEADER, b"", bytes(KEY_BYTES))
    with pytest.raises(ProtocolError, match=f"expected a key sum of 8192 bytes, got {size}"):
        Aggregate(HEADER, b"", bytes(size))


def test_a_header_knows_its_weight_and_whether_it_was_rekeyed():
    assert HEADER.weight == 0.75
    assert not HEADER.rekeyed
    assert HEADER.model_copy(update={"fingerprint": "98" * 16}).rekeyed


def test_a_header_that_travels_is_the_same():
    assert AggregateHeader.model_validate_json(HEADER.model_dump_json()) == HEADER
    with pytest.raises(ValidationError):
        AggregateHeader.model_validate({**HEADER.model_dump(), "extra": 1})
