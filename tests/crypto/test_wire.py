from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedsens.crypto import Aggregator, CkksParameters, Decryptor, Encryptor, generate_key
from fedsens.crypto.wire import (
    CHECKSUM,
    FRESH,
    HEADER,
    MAX_SUMMANDS,
    SUM,
    _checksum,
    parse_batch,
)
from fedsens.errors import CiphertextError, KeyMismatchError

from .kit import N, decryptor, encryptor, key, parameters

REFUSED = (CiphertextError, KeyMismatchError)
COMPACT = parameters("compact")
VALUES = np.random.default_rng(0).normal(0, 0.1, 2 * N - 5)
DATA = encryptor("compact").encrypt(VALUES)
TABLE = HEADER.size + 2
OFFSETS = {"magic": 0, "version": 4, "kind": 5, "zero": 6, "parameters": 8, "key": 24}
OFFSETS |= {"values": 40, "blocks": 48, "summands": 52, "table": 56, "seal": TABLE}


def refuse(data):
    """Both readers refuse these bytes, each with one of the two errors."""
    for read in (decryptor("compact").decrypt, Aggregator(COMPACT).add):
        with pytest.raises(REFUSED):
            read(data)


def resealed(data):
    """The same bytes with a right checksum, so that only the field under test is wrong."""
    return bytes(data[:-CHECKSUM]) + _checksum(bytes(data[:-CHECKSUM]))


def flipped(data, bit):
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def test_format_is_frozen():
    batch = parse_batch(DATA, COMPACT)
    assert HEADER.size == 56
    assert DATA[:8] == b"FSCT\x01\x00\x00\x00"
    assert DATA[8:24] == COMPACT.digest
    assert DATA[24:40].hex() == key("compact").fingerprint
    assert int.from_bytes(DATA[40:48], "little") == 2 * N - 5
    assert int.from_bytes(DATA[48:52], "little") == 2
    assert int.from_bytes(DATA[52:56], "little") == 1
    widths = list(DATA[56:58])
    assert set(widths) <= {4, 5}
    assert [len(block) for block in batch.blocks] == [64 + N * width for width in widths]
    assert len(DATA) == TABLE + 2 * 64 + N * sum(widths) + CHECKSUM
    assert batch.to_bytes() == DATA


def test_a_sum_says_how_many_it_holds():
    total = Aggregator(COMPACT).sum([DATA, DATA, DATA])
    batch = parse_batch(Aggregator(COMPACT).sum([total, DATA]), COMPACT)
    assert (batch.kind, batch.summands, batch.values) == (SUM, 4, len(VALUES))


def test_every_truncation_is_refused():
    for length in range(len(DATA)):
        with pytest.raises(CiphertextError):
            parse_batch(DATA[:length], COMPACT)
    refuse(DATA[: len(DATA) // 2])


@pytest.mark.parametrize("length", [0, 4, HEADER.size - 1, HEADER.size, TABLE, TABLE + 9, 9000])
def test_truncation_is_refused_even_with_a_right_checksum(length):
    refuse(DATA[:length] + _checksum(DATA[:length]))


def test_every_flipped_bit_of_header_table_and_checksum_is_refused():
    ends = (*range(8 * TABLE), *range(8 * (len(DATA) - CHECKSUM), 8 * len(DATA)))
    for bit in ends:
        refuse(flipped(DATA, bit))


def test_a_flipped_bit_of_the_payload_is_refused():
    for bit in np.random.default_rng(0).integers(8 * TABLE, 8 * len(DATA), 500):
        refuse(flipped(DATA, bit))


@pytest.mark.parametrize(
    "tail",
    [b"\0", b"\0" * 16, DATA, DATA[-CHECKSUM:]],
    ids=["zero", "zeros", "itself", "checksum"],
)
def test_appended_bytes_are_refused(tail):
    refuse(DATA + tail)
    refuse(resealed(DATA + tail))


def test_a_header_that_was_changed_and_resealed_is_refused_or_only_shortens():
    # The checksum guards against damage, not forgery; even so nothing may be misread.
    for bit in range(8 * TABLE):
        data = resealed(flipped(DATA, bit))
        try:
            values = decryptor("compact").decrypt(data)
        except REFUSED:
            continue
        changed = bit // 8
        assert changed == OFFSETS["kind"] or 40 <= changed < 48
        assert np.abs(values[: len(VALUES)] - VALUES[: len(values)]).max() < 1e-6
        assert N < len(values) <= 2 * N


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"values": N}, "4096 values, 2 blocks"),
        ({"values": 2 * N + 1}, "8193 values, 2 blocks"),
        ({"values": 0}, "0 values, 2 blocks"),
        ({"values": 2**63}, "blocks"),
        ({"summands": 0}, "0 summands"),
        ({"summands": 2}, "2 summands"),
        ({"kind": SUM, "summands": 0}, "0 summands"),
        ({"kind": 2}, "kind 2"),
    ],
)
def test_counts_that_cannot_be_are_refused(change, problem):
    data = replace(parse_batch(DATA, COMPACT), **change).to_bytes()
    with pytest.raises(CiphertextError, match=problem):
        decryptor("compact").decrypt(data)
    refuse(data)


def test_blocks_cut_elsewhere_are_refused():
    first, second = map(bytes, parse_batch(DATA, COMPACT).blocks)
    for blocks in ((b"", first + second), (first, b"")):
        refuse(replace(parse_batch(DATA, COMPACT), blocks=blocks).to_bytes())


def test_a_table_longer_than_the_batch_is_refused_before_anything_is_read():
    data = bytearray(DATA)
    data[40:52] = (2**43).to_bytes(8, "little") + (2**31).to_bytes(4, "little")
    with pytest.raises(CiphertextError, match="another list"):
        parse_batch(resealed(data), COMPACT)


@pytest.mark.parametrize(
    "other",
    [
        parameters("balanced"),
        CkksParameters.preset("compact", value_range=5.0),
        CkksParameters(name="compact", value_range=4.0, phase_seed=1),
    ],
    ids=["preset", "range", "phases"],
)
def test_other_parameters_are_named(other):
    for read in (Decryptor(generate_key(other)).decrypt, Aggregator(other).add):
        with pytest.raises(KeyMismatchError, match=r"under the parameters .*value_range="):
            read(DATA)


def test_another_key_is_named_by_fingerprint():
    other = generate_key(COMPACT)
    with pytest.raises(KeyMismatchError, match=f"{other.fingerprint}, got {DATA[24:40].hex()}"):
        Decryptor(other).decrypt(DATA)
    aggregator = Aggregator(COMPACT)
    aggregator.add(DATA)
    with pytest.raises(KeyMismatchError, match=other.fingerprint):
        aggregator.add(Encryptor(other).encrypt(VALUES))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300))
@example(b"")
@example(DATA[: HEADER.size])
def test_arbitrary_bytes_are_refused(data):
    refuse(data)
    refuse(resealed(DATA[: HEADER.size] + data + b"\0" * CHECKSUM))
    refuse(resealed(DATA[: HEADER.size - 16] + data + b"\0" * CHECKSUM))


@settings(max_examples=150, deadline=None)
@given(field=st.sampled_from(sorted(OFFSETS)), shift=st.integers(0, 40), data=st.binary(min_size=1))
def test_overwritten_bytes_are_refused_or_change_nothing(field, shift, data):
    low = OFFSETS[field] + shift
    changed = DATA[:low] + data + DATA[low + len(data) :]
    if changed != DATA:
        refuse(changed)


def test_bytes_like_input_is_read_as_well():
    for data in (bytearray(DATA), memoryview(DATA)):
        assert (decryptor("compact").decrypt(data) == decryptor("compact").decrypt(DATA)).all()


def test_summands_cannot_be_counted_past_the_field():
    total = Aggregator(COMPACT).sum([DATA])
    liar = replace(parse_batch(total, COMPACT), summands=MAX_SUMMANDS).to_bytes()
    aggregator = Aggregator(COMPACT)
    aggregator.add(DATA)
    with pytest.raises(CiphertextError, match=f"at most {MAX_SUMMANDS} summands"):
        aggregator.add(liar)
    assert parse_batch(aggregator.result(), COMPACT).summands == 1


def test_an_empty_vector_is_a_batch_without_blocks():
    data = encryptor("compact").encrypt(np.zeros(0))
    assert len(data) == HEADER.size + CHECKSUM
    batch = parse_batch(data, COMPACT)
    assert (batch.kind, batch.values, batch.blocks) == (FRESH, 0, ())
