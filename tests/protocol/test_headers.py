"""The headers of messages: they survive the wire, and nothing else passes for one."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, ValidationError

from fedsens.crypto import MAP_PARAMETERS, CkksParameters
from fedsens.errors import ProtocolError
from fedsens.layout import ParameterLayout
from fedsens.protocol import (
    AggregateHeader,
    Contributor,
    Contributors,
    Header,
    KeyReply,
    KeyRequest,
    KeySumRequest,
    MapRequest,
    MaskOrigin,
    MaskReply,
    MaskRequest,
    ModelHeader,
    Party,
    PlainMapHeader,
    RekeyReply,
    RekeyRequest,
    UploadHeader,
    _headers,
)
from fedsens.protocol._contributors import cohort_digest
from tests.keys.uploads import context_of, sender

PARAMETERS = CkksParameters.preset("compact")
DIGEST, NAME, FINGERPRINT, NONCE = "ab" * 32, "cd" * 32, "ef" * 16, "01" * 16
LAYOUT = ParameterLayout.from_shapes([("w", (3,), "float32")])
PARTIES = (sender(0).party, sender(1).party)
LIST = Contributors.of(Contributor(name=each.name, weight=0.5, nonce=NONCE) for each in PARTIES)
AGGREGATE = AggregateHeader(
    context=context_of([sender(0), sender(1)]),
    contributors=LIST,
    tags=(1, 2, 3),
    fingerprint=FINGERPRINT,
)
ORIGIN = MaskOrigin(round=1, policy="layerwise", ratio=0.1, force=("last",), seed=3)
EXAMPLES = [
    ModelHeader(
        round=2,
        model_round=1,
        layout=LAYOUT.to_json(),
        model_mask=DIGEST,
        mask=DIGEST,
        parameters=PARAMETERS,
        fingerprint=FINGERPRINT,
        aggregate=AGGREGATE,
        cohort=PARTIES,
        reference=120.0,
    ),
    UploadHeader(context=DIGEST, name=NAME, weight=1 / 3, nonce=NONCE, tags=(1, 2, 2**24)),
    PlainMapHeader(weight=0.1 + 0.2, samples=4),
    KeySumRequest(kind="map", round=3, context=DIGEST, contributors=LIST),
    KeyRequest(step="share", roster={2**63: NAME}, create=True),
    KeyReply(name=NAME, run_key=NAME, examples=12),
    MapRequest(rule="vector", maps="encrypted"),
    MaskRequest(origin=ORIGIN, aggregate=AGGREGATE),
    MaskReply(certificate="ab" * 32),
    RekeyRequest(key_index=2, fingerprint=FINGERPRINT),
    RekeyReply(tags=(5, 6)),
]
EXAMPLE = {type(each): each for each in EXAMPLES}


def kinds(example):
    return type(example).__name__


def changed(example, **fields):
    return json.dumps({**json.loads(example.to_json()), **fields})


@pytest.mark.parametrize("example", EXAMPLES, ids=kinds)
def test_a_header_survives_the_wire(example):
    assert type(example).from_json(example.to_json()) == example


@pytest.mark.parametrize("example", EXAMPLES, ids=kinds)
@pytest.mark.parametrize("version", [0, 1, 2, 4, "one", None])
def test_another_version_is_refused_by_name(example, version):
    with pytest.raises(ProtocolError, match=r"wrong version; use the same fedsens version"):
        type(example).from_json(changed(example, version=version))


@pytest.mark.parametrize("example", EXAMPLES, ids=kinds)
def test_another_field_is_refused_by_name(example):
    with pytest.raises(ProtocolError, match="extra"):
        type(example).from_json(changed(example, extra=1))


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
FIELDS = [
    (ModelHeader, "reference"),
    (UploadHeader, "weight"),
    (UploadHeader, "samples"),
    (UploadHeader, "work_seconds"),
    (UploadHeader, "encrypt_seconds"),
    (UploadHeader, "decrypt_seconds"),
    (PlainMapHeader, "weight"),
    (PlainMapHeader, "samples"),
    (PlainMapHeader, "work_seconds"),
    (KeyReply, "examples"),
    (KeyRequest, "key_index"),
    (RekeyRequest, "key_index"),
]


@pytest.mark.parametrize(("kind", "field"), FIELDS)
@pytest.mark.parametrize("number", NUMBERS, ids=["inf", "-inf", "nan", "-1", "huge"])
def test_numbers_that_break_arithmetic_are_refused(kind, field, number):
    with pytest.raises(ProtocolError, match=field):
        kind.from_json(changed(EXAMPLE[kind], **{field: number}))


@pytest.mark.parametrize("number", NUMBERS, ids=["inf", "-inf", "nan", "-1", "huge"])
def test_a_ratio_that_is_none_is_refused(number):
    origin = {**ORIGIN.model_dump(), "ratio": number}
    with pytest.raises(ProtocolError, match="origin"):
        MaskRequest.from_json(changed(EXAMPLE[MaskRequest], origin=origin))


@pytest.mark.parametrize("kind", [ModelHeader, KeySumRequest])
@pytest.mark.parametrize("number", [0, -1, 1.5, None])
def test_rounds_count_from_one(kind, number):
    with pytest.raises(ProtocolError, match="round"):
        kind.from_json(changed(EXAMPLE[kind], round=number))


HEXADECIMAL = [
    (KeyReply, "name", 64),
    (KeyReply, "run_key", 64),
    (UploadHeader, "name", 64),
    (UploadHeader, "context", 64),
    (UploadHeader, "nonce", 32),
    (ModelHeader, "mask", 64),
    (ModelHeader, "fingerprint", 32),
    (RekeyRequest, "fingerprint", 32),
    (KeySumRequest, "context", 64),
]


@pytest.mark.parametrize(("kind", "field", "digits"), HEXADECIMAL)
def test_names_and_digests_are_lower_case_hexadecimal_of_their_length(kind, field, digits):
    right = "a0" * (digits // 2)
    assert getattr(kind.from_json(changed(EXAMPLE[kind], **{field: right})), field) == right
    for wrong in ("zz" * (digits // 2), "ab", right.upper(), right + "ab", right + "\n", 7):
        with pytest.raises(ProtocolError, match=field):
            kind.from_json(changed(EXAMPLE[kind], **{field: wrong}))


def test_a_list_and_tags_too_long_for_any_run_are_refused():
    for kind in (UploadHeader, RekeyReply):
        with pytest.raises(ProtocolError, match="tags"):
            kind.from_json(changed(EXAMPLE[kind], tags=list(range(17))))


def test_headers_never_quote_what_they_refuse():
    with pytest.raises(ProtocolError) as caught:
        UploadHeader.from_json('{"weight": "0.123456789x", "0.987654321\\nrefused": 1}')
    for secret in ("0.123456789", "0.987654321", "\n"):
        assert secret not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    "options",
    [
        {"remainder": {"remainder": "hidden", "scale": "0.123456789x"}},
        {"dp": {"clip": "0.123456789x"}},
        {"parameters": {"value_range": "0.123456789x", "0.987654321": 1}},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_within_a_header_are_the_headers_error_and_not_quoted(options):
    text = changed(EXAMPLE[ModelHeader], **options)
    with pytest.raises(ProtocolError, match=f"wrong {next(iter(options))}; use the same") as caught:
        ModelHeader.from_json(text)
    assert "0." not in str(caught.value)


def test_every_header_has_an_example_here():
    known = {kind for kind in vars(_headers).values() if isinstance(kind, type)}
    concrete = {k for k in known if issubclass(k, Header) and k is not Header}
    assert concrete == set(EXAMPLE)


def test_uploads_are_bound_to_what_the_header_says():
    header = EXAMPLE[ModelHeader]
    context = header.context("update", "17", "12" * 32)
    assert (context.kind, context.run, context.base) == ("update", "17", "12" * 32)
    assert (context.round, context.parameters) == (2, PARAMETERS)
    assert (context.layout, context.mask) == (LAYOUT.digest, DIGEST)
    assert context.cohort == cohort_digest(PARTIES)
    assert context.reference == 120.0
    # Maps are encrypted whole, whatever mask the answers to training get.
    whole = header.context("map", "17", "12" * 32)
    assert (whole.kind, whole.mask, whole.parameters) == ("map", None, MAP_PARAMETERS)


CHANGES = [
    {"round": 3},
    {"layout": ParameterLayout.from_shapes([("w", (4,), "float32")]).to_json()},
    {"model_mask": "98" * 32},
    {"mask": "98" * 32},
    {"parameters": CkksParameters.preset("compact", 8.0)},
    {"fingerprint": "98" * 16},
    {"cohort": PARTIES[:1]},
    {"cohort": (Party(name=PARTIES[0].name, run_key=PARTIES[1].run_key), PARTIES[1])},
    {"reference": 121.0},
    {"weighted_by": "samples"},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda each: next(iter(each)))
def test_what_a_header_says_of_an_upload_changes_its_context(change):
    header = EXAMPLE[ModelHeader]
    other = header.model_copy(update=change)
    one, two = (each.context("update", "1", DIGEST).digest for each in (header, other))
    assert one != two


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int = 0
    name: str = ""


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"size": "x", "name": 5}, "name, size"),
        ({"other": 1}, "other"),
        ({"a\nb": 1, "size": "x"}, "content, size"),
        ({"x" * 41: 1}, "content"),
        ({f"n{i}": i for i in range(21)}, "content"),
        ([], "content"),
    ],
)
def test_plain_words_are_named_and_nothing_else(record, told):
    with pytest.raises(ValidationError) as error:
        Record.model_validate_json(json.dumps(record))
    assert _headers._wrong_fields(error.value) == told
