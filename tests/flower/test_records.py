"""Records of messages: NumPy files of another party, and the digest of all that is said."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedsens.crypto import CkksParameters
from fedsens.errors import ProtocolError
from fedsens.flower._records import (
    base_digest,
    bytes_to_record,
    put_header,
    put_model,
    read_npy,
    take_model,
    to_arrays,
    to_record,
)
from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask
from fedsens.protocol import ModelHeader, ProtectedModel

KINDS = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?"),
)


def saved(array):
    with io.BytesIO() as file:
        np.save(file, array)
        return file.getvalue()


@settings(deadline=None, max_examples=200)
@given(array=hnp.arrays(KINDS, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0)))
def test_what_numpy_saves_comes_back(array):
    for each in (array, array.T, array[..., ::-1] if array.ndim else array):
        again, usual = read_npy(saved(each)), np.load(io.BytesIO(saved(each)))
        assert (again.dtype, again.shape, again.flags.writeable) == (usual.dtype, usual.shape, True)
        assert again.tobytes() == usual.tobytes()
        assert again.flags.f_contiguous == usual.flags.f_contiguous


@pytest.mark.parametrize(
    "array",
    [
        np.array(["text"]),
        np.zeros(2, "f4,i4"),
        np.zeros(1, "V3"),
        np.zeros(1, "M8[s]"),
    ],
    ids=lambda array: array.dtype.kind,
)
def test_other_types_are_refused(array):
    with pytest.raises(ValueError, match="another"):
        read_npy(saved(array))


@pytest.mark.parametrize("cut", [-1, 1, 0])
def test_missing_and_spare_bytes_are_refused(cut):
    data = saved(np.ones(3))
    data = data[:cut] if cut < 0 else data + bytes(8 * cut)
    if cut:
        with pytest.raises(ValueError, match="another size"):
            read_npy(data)
    else:
        assert read_npy(data).sum() == 3


def test_a_claim_of_terabytes_takes_no_memory():
    data = saved(np.ones(3)).replace(b"(3,), }           ", b"(300000000000,), }")
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="another size"):
            read_npy(data)
        assert tracemalloc.get_traced_memory()[1] < 2**16
    finally:
        tracemalloc.stop()


def content(**records):
    """A message of every kind of record."""
    usual = {
        "arrays": ArrayRecord({
            "w": Array(np.arange(6, dtype=np.float32).reshape(2, 3)),
            "b": Array(np.arange(2, dtype=np.int64)),
        }),
        "config": ConfigRecord({
            "int": 1,
            "float": 1.5,
            "bool": True,
            "text": "a",
            "bytes": b"ab",
            "ints": [1, 2],
            "texts": ["a", "b"],
        }),
        "metrics": MetricRecord({"n": 3, "loss": 0.5, "each": [1.0, 2.0]}),
        "fedsens.mask": bytes_to_record(b"mask"),
    }
    return RecordDict(usual | records)


def config(**changes):
    return content(config=ConfigRecord(dict(content()["config"]) | changes))


def arrays(**changes):
    return content(arrays=ArrayRecord(dict(content()["arrays"]) | changes))


W = np.arange(6, dtype=np.float32).reshape(2, 3)
DATA = Array(W).data
OTHERS = {
    "no record": RecordDict(),
    "a record more": content(more=ConfigRecord()),
    "another empty record": content(more=MetricRecord()),
    "an empty record of arrays": content(more=ArrayRecord()),
    "another name of a record": RecordDict({
        {"config": "confiG"}.get(name, name): record for name, record in content().items()
    }),
    "int": config(int=2),
    "int as float": config(int=1.0),
    "int as bool": config(int=True),
    "int as text": config(int="1"),
    "float, a little": config(float=float(np.nextafter(1.5, 2))),
    "bool as int": config(bool=1),
    "bool": config(bool=False),
    "text": config(text="b"),
    "text as bytes": config(text=b"a"),
    "text that quotes": config(text='a"]'),
    "bytes": config(bytes=b"ba"),
    "bytes as their hexadecimal": config(bytes="6162"),
    "order of a list": config(ints=[2, 1]),
    "shorter list": config(ints=[1]),
    "list of one as number": config(int=[1]),
    "list of floats": config(ints=[1.0, 2.0]),
    "joined texts": config(texts=["a,b"]),
    "a value more": config(more=1),
    "minus zero": config(float=-0.0),
    "zero": config(float=0.0),
    "metric": content(metrics=MetricRecord({"n": 3, "loss": 0.25, "each": [1.0, 2.0]})),
    "metric's list": content(metrics=MetricRecord({"n": 3, "loss": 0.5, "each": [1.0, 2.5]})),
    "array's value": arrays(w=Array(W + 1)),
    "array's dtype": arrays(w=Array(W.astype(np.float64))),
    "array's shape": arrays(w=Array(W.reshape(3, 2))),
    "array's name": arrays(v=Array(W)),
    "array's stated dtype": arrays(w=Array("float64", (2, 3), "numpy.ndarray", DATA)),
    "array's stated shape": arrays(w=Array("float32", (3, 2), "numpy.ndarray", DATA)),
    "array's form": arrays(w=Array("float32", (2, 3), "other", DATA)),
    "array's memory order": arrays(w=Array(np.asfortranarray(W))),
    "array's last byte": arrays(
        w=Array("float32", (2, 3), "numpy.ndarray", DATA[:-1] + bytes([DATA[-1] ^ 1]))
    ),
    "a byte more": arrays(w=Array("float32", (2, 3), "numpy.ndarray", DATA + b"\0")),
    "fedsens's own bytes": content(**{"fedsens.mask": bytes_to_record(b"masc")}),
    "swapped arrays": arrays(w=Array(np.arange(2, dtype=np.int64)), b=Array(W)),
}


def test_whatever_a_message_says_changes_its_digest():
    digests = {name: base_digest(each) for name, each in OTHERS.items()}
    digests["usual"] = base_digest(content())
    by_digest = {}
    for name, digest in digests.items():
        by_digest.setdefault(digest, []).append(name)
    assert [names for names in by_digest.values() if len(names) > 1] == []


def backwards(record):
    return type(record)(dict(reversed(record.items())))


def test_the_order_in_which_records_and_values_are_put_does_not_matter():
    whole = content()
    turned = RecordDict({name: backwards(whole[name]) for name in reversed(list(whole))})
    assert list(turned) != list(whole)
    assert base_digest(turned) == base_digest(whole)


VALUES = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.booleans(),
    st.text(st.characters(codec="utf-8"), max_size=5),
    st.binary(max_size=5),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
    st.lists(st.text(st.characters(codec="utf-8"), max_size=3), max_size=3),
)
NAMES = st.text(st.characters(codec="utf-8"), max_size=4)
CONFIGS = st.dictionaries(NAMES, VALUES, max_size=3)


def typed(value):
    """A value that is equal to those of its own type only, and of which -0.0 is another."""
    if isinstance(value, list):
        return [typed(each) for each in value]
    return [type(value).__name__, repr(value)]


@settings(deadline=None, max_examples=200)
@given(*[st.dictionaries(NAMES, CONFIGS, max_size=2)] * 2)
def test_digests_are_equal_exactly_for_equal_contents(one, other):
    said = [
        {name: {key: typed(value) for key, value in each.items()} for name, each in told.items()}
        for told in (one, other)
    ]
    digests = [
        base_digest(RecordDict({name: ConfigRecord(each) for name, each in told.items()}))
        for told in (one, other)
    ]
    assert (digests[0] == digests[1]) == (said[0] == said[1])


def told(mask, model_mask=None):
    """What a server says about an initial model of 600 parameters, and the message that says it."""
    layout = ParameterLayout.from_shapes([("w", (600,), "float32")])
    masks = [EncryptionMask(each, layout.digest) for each in (mask, model_mask) if each is not None]
    header = ModelHeader(
        round=1,
        model_round=0,
        layout=layout.to_json(),
        model_mask=masks[-1].digest,
        mask=masks[0].digest,
        parameters=CkksParameters.preset("precise"),
        reference=1.0,
    )
    model = ProtectedModel(layout, masks[-1], {"w": np.ones(600, "f4")}, None, header.parameters, 0)
    message = RecordDict({"arrays": to_record(model.plain)})
    put_model(message, model, header, masks[0])
    return message, header, masks


ALL, NONE, SOME = np.ones(600, bool), np.zeros(600, bool), np.arange(600) < 200


@pytest.mark.parametrize("mask", [ALL, NONE, SOME], ids=["all", "none", "some"])
def test_a_mask_of_all_or_nothing_travels_as_its_digest(mask):
    message, _, (wanted, split_by) = told(mask, NONE)
    assert ("fedsens.mask" in message) == (mask is SOME)
    assert "fedsens.model-mask" not in message
    model, received = take_model(message)
    assert (received.mask, model.mask) == (wanted, split_by)
    assert list(message) == ["arrays"]


def test_a_mask_that_neither_travels_nor_is_all_or_nothing_is_refused():
    message, *_ = told(SOME, NONE)
    del message["fedsens.mask"]
    with pytest.raises(ProtocolError, match=r"that the header names, got another or none"):
        take_model(message)


def test_a_layout_larger_than_its_message_takes_no_memory():
    message, header, _ = told(ALL, NONE)
    layout = ParameterLayout.from_shapes([("w", (10**12,), "float32")])
    put_header(message, header.model_copy(update={"layout": layout.to_json()}))
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="a model of 1000000000000 parameters"):
            take_model(message)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_bfloat16_is_refused_by_name_with_the_way_out():
    void = np.zeros(3, "V2")  # what np.save makes of ml_dtypes.bfloat16
    head = Array("bfloat16", (3,), "numpy.ndarray", saved(void))
    record = ArrayRecord({"w": Array(np.zeros(2, np.float32)), "head": head})
    with pytest.raises(ProtocolError, match=r"bfloat16 in 'head'; send tensor.float\(\)"):
        to_arrays(record)
