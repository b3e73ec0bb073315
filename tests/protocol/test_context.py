"""D: equal exactly where everything that clients were told is equal."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedsens.crypto import PRESETS, CkksParameters
from fedsens.protocol import RoundContext
from fedsens.remainder import CentralPrivacy, RemainderTerms
from tests.keys.uploads import context_of, sender

CONTEXT = context_of([sender(0), sender(1)])
NAMED = "98" * 16
OTHERS = {
    "opens": ["server"],
    "dp": [
        CentralPrivacy(clip=1.0, noise=1.0, shares=2),
        CentralPrivacy(clip=2.0, noise=1.0, shares=2),
        CentralPrivacy(clip=1.0, noise=2.0, shares=2),
        CentralPrivacy(clip=1.0, noise=1.0, shares=3),
    ],
    "kind": ["map"],
    "run": ["2", "11", "01"],
    "round": [2, 4],
    "fingerprint": [NAMED],
    "parameters": [
        CkksParameters.preset("precise"),
        CkksParameters.preset("compact", 4.0000001),
        CkksParameters(name="compact", value_range=4.0, phase_seed=1),
    ],
    "layout": ["98" * 32],
    "model_mask": ["98" * 32],
    "mask": ["98" * 32, None],
    "base": ["98" * 32],
    "reference": [90.00000000000001, 91.0],
    "weighted_by": ["num_examples", ""],
    "remainder": [
        RemainderTerms(experiment=NAMED),
        RemainderTerms(remainder="noised", experiment=NAMED),
        RemainderTerms(remainder="noised", experiment=NAMED, scale=2.0),
        RemainderTerms(remainder="noised", experiment=NAMED, clip=2.0),
        RemainderTerms(remainder="noised", experiment=NAMED, noise="laplace"),
        RemainderTerms(remainder="withheld", experiment=NAMED),
    ],
    "cohort": ["98" * 32],
}


def test_every_field_has_other_values_here():
    assert set(OTHERS) | {"version"} == set(RoundContext.model_fields)


@pytest.mark.parametrize(
    ("field", "value"), [(name, value) for name, values in OTHERS.items() for value in values]
)
def test_every_field_changes_the_digest(field, value):
    assert CONTEXT.model_copy(update={field: value}).digest != CONTEXT.digest


def test_without_noise_the_digest_is_that_of_files_from_before_there_was_any():
    fields = CONTEXT.model_dump(mode="json")
    assert fields.pop("dp") is None
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    assert CONTEXT.digest == hashlib.sha256(b"fedsens context 3" + text.encode()).digest()


def test_no_two_single_changes_have_one_digest():
    changed = [
        CONTEXT.model_copy(update={name: value}).digest
        for name, values in OTHERS.items()
        for value in values
    ]
    assert len({*changed, CONTEXT.digest}) == len(changed) + 1


digests = st.integers(0, 2**256 - 1).map("{:064x}".format)
contexts = st.builds(
    RoundContext,
    kind=st.sampled_from(["update", "map"]),
    run=st.integers(0, 2**63).map(str),
    round=st.integers(1, 2**31),
    fingerprint=st.integers(0, 2**128 - 1).map("{:032x}".format),
    parameters=st.builds(
        CkksParameters,
        name=st.sampled_from(list(PRESETS)),
        value_range=st.floats(2.0**-20, 2.0**20),
        phase_seed=st.integers(0, 2**32 - 1),
    ),
    layout=digests,
    model_mask=digests,
    mask=st.none() | digests,
    base=digests,
    reference=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    weighted_by=st.text(st.characters(codec="utf-8", exclude_categories=("C", "Zl", "Zp"))),
    cohort=digests,
)


@given(contexts)
def test_a_context_that_travels_keeps_its_digest(context):
    again = RoundContext.model_validate_json(context.model_dump_json())
    assert again == context
    assert again.digest == context.digest
    shuffled = dict(sorted(json.loads(context.model_dump_json()).items(), reverse=True))
    assert RoundContext.model_validate_json(json.dumps(shuffled)).digest == context.digest


@given(contexts, contexts)
def test_digests_are_equal_exactly_for_equal_contexts(one, other):
    assert (one.digest == other.digest) == (one == other)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "moved"},
        {"run": "-1"},
        {"run": "1\n"},
        {"round": 0},
        {"reference": 0},
        {"reference": float("nan")},
        {"weighted_by": "a\nb"},
        {"weighted_by": "a" * 300},
        {"layout": "AB" * 32},
        {"version": 2},
        {"extra": 1},
    ],
    ids=str,
)
def test_what_no_server_would_say_is_refused(change):
    with pytest.raises(ValidationError):
        RoundContext.model_validate(CONTEXT.model_dump() | change)
