import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsens import CkksParameters
from fedsens.errors import ProtocolError
from fedsens.protocol import headers
from fedsens.protocol.headers import (
    KeyReply,
    KeyRequest,
    MapReply,
    MapRequest,
    MaskRequest,
    ModelHeader,
    RotateRequest,
    UpdateHeader,
)

PARAMETERS = CkksParameters.preset("compact")
DIGEST = "ab" * 32
EXAMPLES = [
    ModelHeader(
        round=2,
        model_round=1,
        layout="[]",
        model_mask=DIGEST,
        mask=DIGEST,
        parameters=PARAMETERS,
        fingerprint="cd" * 16,
        weight=0.7,
        reference=120.0,
    ),
    UpdateHeader(round=1, mask=DIGEST, layout=DIGEST, weight=1 / 3, contributor="7"),
    KeyRequest(step="share", parameters=PARAMETERS, roster={2**63: "ab" * 32}, create=True),
    KeyReply(public_key="ab" * 32, examples=12),
    MapRequest(rule="vector", maps="encrypted", reference=3.0),
    MapReply(samples=4, seconds=0.1, weight=0.5, contributor="7"),
    MaskRequest(policy="layerwise", ratio=0.1, force=("last",), seed=3, scores=True),
    RotateRequest(generation=2, fingerprint="ab" * 16),
]


def kinds(example):
    return type(example).__name__


@pytest.mark.parametrize("example", EXAMPLES, ids=kinds)
def test_a_header_survives_the_wire(example):
    assert type(example).from_json(example.to_json()) == example


@pytest.mark.parametrize("example", EXAMPLES, ids=kinds)
@pytest.mark.parametrize("version", [0, 1, 3, "one", None])
def test_another_version_is_refused_by_name(example, version):
    text = json.dumps({**json.loads(example.to_json()), "version": version})
    with pytest.raises(ProtocolError, match=r"wrong version; use the same fedsens version"):
        type(example).from_json(text)


@pytest.mark.parametrize("example", EXAMPLES, ids=kinds)
def test_another_field_is_refused_by_name(example):
    text = json.dumps({**json.loads(example.to_json()), "extra": 1})
    with pytest.raises(ProtocolError, match="extra"):
        type(example).from_json(text)


@pytest.mark.parametrize("example", EXAMPLES, ids=kinds)
@pytest.mark.parametrize("text", ["", "null", "[]", "{", "\0", "[" * 5000, "NaN"])
def test_garbage_is_refused(example, text):
    with pytest.raises(ProtocolError, match=f"expected a {kinds(example)}"):
        type(example).from_json(text)


@given(st.sampled_from(EXAMPLES), st.text())
def test_any_text_is_refused_or_a_header(example, text):
    with pytest.raises(ProtocolError):
        type(example).from_json(text)


NUMBERS = [float("inf"), float("-inf"), float("nan"), -1, 10**400]


@pytest.mark.parametrize(
    ("example", "field"),
    [
        (EXAMPLES[0], "weight"),
        (EXAMPLES[0], "reference"),
        (EXAMPLES[1], "weight"),
        (EXAMPLES[1], "encrypt_seconds"),
        (EXAMPLES[1], "decrypt_seconds"),
        (EXAMPLES[3], "examples"),
        (EXAMPLES[4], "reference"),
        (EXAMPLES[5], "samples"),
        (EXAMPLES[5], "seconds"),
        (EXAMPLES[6], "ratio"),
    ],
)
@pytest.mark.parametrize("number", NUMBERS, ids=["inf", "-inf", "nan", "-1", "huge"])
def test_numbers_that_break_arithmetic_are_refused(example, field, number):
    text = json.dumps({**json.loads(example.to_json()), field: number})
    with pytest.raises(ProtocolError, match=field):
        type(example).from_json(text)


@pytest.mark.parametrize("public_key", ["zz" * 32, "ab", "AB" * 33, "ab" * 32 + "\n"])
def test_a_public_key_is_hexadecimal(public_key):
    text = json.dumps({**json.loads(EXAMPLES[3].to_json()), "public_key": public_key})
    with pytest.raises(ProtocolError, match="public_key"):
        KeyReply.from_json(text)


def test_headers_never_quote_what_they_refuse():
    with pytest.raises(ProtocolError) as caught:
        UpdateHeader.from_json('{"round": "0.123456789"}')
    assert "0.123456789" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_every_header_has_an_example_here():
    known = {kind for kind in vars(headers).values() if isinstance(kind, type)}
    concrete = {k for k in known if issubclass(k, headers.Header) and k is not headers.Header}
    assert concrete == {type(example) for example in EXAMPLES}
