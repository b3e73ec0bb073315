import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedsens.crypto import Aggregator, CkksParameters, Decryptor, parse_batch, residues
from fedsens.crypto._wire import (
    BATCH_HEADER,
    BLOCKS,
    CHECKSUM,
    CHUNK,
    FRESH,
    SUM,
    to_wire,
    write_batch,
)
from fedsens.errors import CiphertextError, KeyMismatchError, ValueRangeError

from .ring import CONTEXT, NAMES, N, decrypt, encrypt, parameters, vector

REFUSED = (CiphertextError, KeyMismatchError)
COMPACT = parameters("compact")
VALUES = np.random.default_rng(0).normal(0, 0.1, 2 * N - 5)
DATA, SECRET = encrypt("compact", VALUES)
TOTAL = Aggregator(COMPACT).sum([DATA, DATA])
OFFSETS = {"magic": 0, "version": 4, "kind": 5, "zero": 6, "parameters": 8}
OFFSETS |= {"values": 24, "blocks": 32, "contributions": 36, "residues": 40}


def refuse(data):
    """All readers refuse these bytes, each with one of the two errors."""
    aggregator = Aggregator(COMPACT)
    for read in (
        lambda data: decrypt("compact", data, SECRET),
        aggregator.add,
        lambda data: residues(data, COMPACT),
    ):
        with pytest.raises(REFUSED):
            read(data)
    assert aggregator.contributions == 0


def resealed(data):
    """The same bytes with a right checksum, so that only the field under test is wrong."""
    body = bytes(data[:-CHECKSUM])
    return body + checksum(body)


def checksum(body):
    """The oracle: a CRC-32 of the header and of what the words of each KiB add up to."""
    sums = []
    for low in range(40, len(body), 1024):
        words = [int.from_bytes(body[at : at + 8], "little") for at in range(low, low + 1024, 8)]
        sums.append(sum(words) % 2**64)
    return zlib.crc32(body[:40] + b"".join(s.to_bytes(8, "little") for s in sums)).to_bytes(
        4, "little"
    )


def flipped(data, bit):
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def overwritten(data, field, value, size):
    low = OFFSETS[field]
    return resealed(data[:low] + value.to_bytes(size, "little") + data[low + size :])


def numbers(block, width):
    """The oracle: the residues of a block byte by byte, as Python's integers have them."""
    planes, low = {2: [2], 3: [2, 1], 4: [4], 7: [4, 2, 1]}[width], 0
    words = [0] * N
    for size in planes:
        shift = 8 * (low // N)
        for i in range(N):
            part = block[low + size * i : low + size * (i + 1)]
            words[i] |= int.from_bytes(part, "little") << shift
        low += size * N
    assert low == len(block)
    return words


def test_format_is_frozen():
    assert BATCH_HEADER.size == 40
    assert DATA[:8] == b"FSCT\x03\x00\x00\x00"
    assert DATA[8:24] == COMPACT.digest
    assert int.from_bytes(DATA[24:32], "little") == 2 * N - 5
    assert int.from_bytes(DATA[32:36], "little") == 2
    assert int.from_bytes(DATA[36:40], "little") == 1
    assert len(DATA) == 40 + 2 * 3 * N + 4
    assert DATA[-4:] == checksum(DATA[:-4])
    batch = parse_batch(DATA, COMPACT)
    assert (batch.kind, batch.values, batch.contributions, batch.blocks) == (FRESH, 2 * N - 5, 1, 2)


@pytest.mark.parametrize("name", NAMES)
def test_the_stated_bytes_are_the_measured_ones_for_fresh_batches_and_sums(name):
    data, _ = encrypt(name, vector("random", 5 * N, 0.1))
    for batch in (data, Aggregator(parameters(name)).sum([data] * 3)):
        assert len(batch) == 5 * N * parameters(name).wire_bytes + 44
    assert parameters(name).bytes_per_parameter == parameters(name).wire_bytes
    assert parameters(name).bytes_per_parameter_down == parameters(name).wire_bytes


@settings(max_examples=30, deadline=None)
@given(name=st.sampled_from(NAMES), blocks=st.integers(0, 2), seed=st.integers(0, 2**32))
def test_any_residues_survive(name, blocks, seed):
    params = parameters(name)
    words = np.random.default_rng(seed).integers(0, params.wire_modulus, (blocks, N), np.uint64)
    if blocks:
        words[0, seed % N] = params.wire_modulus - 1
    data = write_batch(params, FRESH, blocks * N, 1, [to_wire(words, params)])
    assert (residues(data, params) == words).all()
    assert residues(data, params).shape == (blocks, N)
    size = BLOCKS[params.wire_bytes].itemsize
    for row, low in zip(words, range(40, len(data) - 4, size), strict=True):
        assert numbers(data[low : low + size], params.wire_bytes) == row.tolist()


def test_residues_come_in_small_pieces_too():
    data, _ = encrypt("tiny", np.zeros((2 * CHUNK + 1) * N))
    batch = parse_batch(data, parameters("tiny"))
    pieces = list(batch.chunks())
    assert [len(words) for _, words in pieces] == [CHUNK, CHUNK, 1]
    assert (np.concatenate([words for _, words in pieces]) == batch.residues()).all()
    for part, words in pieces:
        assert (batch.residues(part.start, part.stop) == words).all()


def test_a_sum_says_how_many_it_holds():
    batch = parse_batch(Aggregator(COMPACT).sum([TOTAL, DATA]), COMPACT)
    assert (batch.kind, batch.contributions, batch.values) == (SUM, 3, len(VALUES))


def test_every_truncation_is_refused():
    for length in [*range(200), *range(200, len(DATA), 97), *range(len(DATA) - 100, len(DATA))]:
        with pytest.raises(CiphertextError):
            parse_batch(DATA[:length], COMPACT)
    refuse(DATA[: len(DATA) // 2])


@pytest.mark.parametrize(
    "length", [0, 4, BATCH_HEADER.size - 1, BATCH_HEADER.size, 49, 9000, len(DATA) - 5]
)
def test_truncation_is_refused_even_with_a_right_checksum(length):
    refuse(DATA[:length] + checksum(DATA[:length]))


def test_every_flipped_bit_of_header_and_checksum_is_refused():
    for bit in (
        *range(8 * BATCH_HEADER.size),
        *range(8 * (len(DATA) - CHECKSUM), 8 * len(DATA)),
    ):
        refuse(flipped(DATA, bit))


def test_a_flipped_bit_of_the_residues_is_refused():
    for bit in np.random.default_rng(0).integers(8 * BATCH_HEADER.size, 8 * len(DATA), 300):
        refuse(flipped(DATA, bit))


@pytest.mark.parametrize("name", NAMES)
def test_zeroed_swapped_and_repeated_parts_are_refused(name):
    """What a disk or a network does to a file."""
    data, _ = encrypt(name, vector("random", 2 * N, 0.1))
    params, rng = parameters(name), np.random.default_rng(0)
    assert N * params.wire_bytes % 1024 == 0
    for size in (1, 4, 512, 1024, 4096):
        for _ in range(20):
            one, two = (int(at) for at in rng.integers(40, len(data) - 4 - size, 2))
            zeroed, swapped, repeated = bytearray(data), bytearray(data), bytearray(data)
            zeroed[one : one + size] = bytes(size)
            repeated[one : one + size] = data[two : two + size]
            if abs(one - two) >= size:
                swapped[one : one + size] = data[two : two + size]
                swapped[two : two + size] = data[one : one + size]
            for damaged in (zeroed, swapped, repeated):
                if damaged != data:
                    with pytest.raises(CiphertextError, match="damaged bytes"):
                        parse_batch(damaged, params)


@pytest.mark.parametrize(
    "tail",
    [b"\0", b"\0" * 16, DATA, DATA[-CHECKSUM:]],
    ids=["zero", "zeros", "itself", "checksum"],
)
def test_appended_bytes_are_refused(tail):
    refuse(DATA + tail)
    refuse(resealed(DATA + tail))


@pytest.mark.parametrize("data", [DATA, TOTAL], ids=["fresh", "sum"])
def test_a_header_that_was_changed_and_resealed_is_refused_or_says_what_it_means(data):
    """The checksum guards against damage, not forgery; even so nothing may be misread."""
    for bit in range(8 * BATCH_HEADER.size):
        try:
            batch = parse_batch(resealed(flipped(data, bit)), COMPACT)
        except REFUSED:
            continue
        field = max(name for name, low in OFFSETS.items() if low <= bit // 8)
        if bit // 8 == OFFSETS["kind"]:
            assert batch.kind == SUM  # a sum of one
        elif bit // 8 >= OFFSETS["contributions"]:
            assert batch.kind == SUM
        else:
            assert 24 <= bit // 8 < 32, field
            assert N < batch.values <= 2 * N


@pytest.mark.parametrize("version", [0, 1, 2])
def test_batches_of_older_versions_are_refused_by_name(version):
    with pytest.raises(CiphertextError, match=f"version {version}, made by an older version"):
        parse_batch(overwritten(DATA, "version", version, 1), COMPACT)


def test_a_batch_of_version_1_as_it_was_written_is_refused_by_name():
    """Its header was longer: 16 bytes of a key's fingerprint after the parameters."""
    old = b"FSCT\1\0\0\0" + bytes(32) + (1).to_bytes(8, "little") + bytes(8) + bytes(N * 4)
    with pytest.raises(CiphertextError, match="version 1, made by an older version of fedsens"):
        parse_batch(old + zlib.crc32(old).to_bytes(4, "little"), COMPACT)  # its own checksum


def test_a_batch_of_a_newer_version_is_refused_by_name():
    with pytest.raises(CiphertextError, match="version 4, made by a newer version of fedsens"):
        parse_batch(overwritten(DATA, "version", 4, 1), COMPACT)


@pytest.mark.parametrize(
    ("data", "change", "problem"),
    [
        (DATA, ("values", N, 8), "4096 values, 2 blocks"),
        (DATA, ("values", 2 * N + 1, 8), "8193 values, 2 blocks"),
        (DATA, ("values", 0, 8), "0 values, 2 blocks"),
        (DATA, ("values", 2**63, 8), "2 blocks"),
        (DATA, ("blocks", 1, 4), "1 blocks"),
        (DATA, ("contributions", 0, 4), "0 contributions"),
        (DATA, ("contributions", 2, 4), "2 contributions"),
        (TOTAL, ("contributions", 0, 4), "0 contributions"),
        (DATA, ("kind", 2, 1), "kind 2"),
        (DATA, ("zero", 1, 1), "expected a fresh batch or a sum"),
        (DATA, ("zero", 256, 2), "expected a fresh batch or a sum"),
        (DATA, ("magic", 0, 4), "other bytes"),
    ],
)
def test_headers_that_cannot_be_are_refused(data, change, problem):
    changed = overwritten(data, *change)
    with pytest.raises(CiphertextError, match=problem):
        parse_batch(changed, COMPACT)
    refuse(changed)


def test_more_blocks_than_there_are_bytes_are_refused_before_anything_is_allocated():
    data = bytearray(DATA)
    data[24:36] = (2**43).to_bytes(8, "little") + (2**31).to_bytes(4, "little")
    with pytest.raises(CiphertextError, match=f"a batch of {44 + 2**31 * 3 * N} bytes, got"):
        parse_batch(resealed(data), COMPACT)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", [0, 1, N - 1, N, 2 * N - 1])
def test_residues_that_are_not_below_the_modulus_are_refused(name, place):
    params = parameters(name)
    words = np.zeros((2, N), np.uint64)
    for excess, kind in ((0, FRESH), (1, SUM)):
        words.reshape(-1)[place] = params.wire_modulus + excess
        data = write_batch(params, kind, 2 * N, 1, [to_wire(words, params)])
        for read in (residues, parse_batch, lambda data, params: Aggregator(params).add(data)):
            with pytest.raises(CiphertextError, match=f"below {params.wire_modulus}, got a larger"):
                read(data, params)
    words.reshape(-1)[place] = params.wire_modulus - 1
    assert residues(write_batch(params, FRESH, 2 * N, 1, [to_wire(words, params)]), params).any()


@pytest.mark.parametrize(
    "other",
    [
        parameters("precise"),
        CkksParameters.preset("compact", value_range=5.0),
        CkksParameters(name="compact", value_range=4.0, phase_seed=1),
    ],
    ids=["preset", "range", "phases"],
)
def test_other_parameters_are_named(other):
    readers = (
        lambda data: Decryptor(other, CONTEXT).decrypt(data, SECRET),
        Aggregator(other).add,
        lambda data: residues(data, other),
    )
    for read in readers:
        with pytest.raises(KeyMismatchError, match=r"under the parameters .*value_range="):
            read(DATA)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
@example(b"")
@example(DATA[: BATCH_HEADER.size])
def test_arbitrary_bytes_are_refused(data):
    refuse(data)
    refuse(resealed(DATA[: BATCH_HEADER.size] + data + b"\0" * CHECKSUM))
    refuse(resealed(DATA[: BATCH_HEADER.size - 16] + data + b"\0" * CHECKSUM))


@settings(max_examples=100, deadline=None)
@given(field=st.sampled_from(sorted(OFFSETS)), shift=st.integers(0, 40), data=st.binary(min_size=1))
def test_overwritten_bytes_are_refused_or_change_nothing(field, shift, data):
    low = OFFSETS[field] + shift
    changed = DATA[:low] + data + DATA[low + len(data) :]
    if changed != DATA:
        refuse(changed)


@settings(max_examples=60, deadline=None)
@given(
    flips=st.lists(st.integers(8 * BATCH_HEADER.size, 8 * (len(DATA) - CHECKSUM) - 1), min_size=1),
    of_sum=st.booleans(),
)
def test_tampered_residues_open_to_something_or_are_refused_but_break_nothing(flips, of_sum):
    """A changed residue is a changed value: telling is the tags' task, above the codec."""
    data, secret = (TOTAL, SECRET + SECRET) if of_sum else (DATA, SECRET)
    for bit in flips:
        data = flipped(data, bit)
    try:
        values = decrypt("compact", resealed(data), secret)
    except (CiphertextError, ValueRangeError):
        return
    assert values.shape == VALUES.shape
    assert np.isfinite(values).all()


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_bytes_like_input_is_read_as_well(kind):
    assert (decrypt("compact", kind(DATA), SECRET) == decrypt("compact", DATA, SECRET)).all()
    assert Aggregator(COMPACT).sum([kind(DATA)] * 2) == TOTAL


def test_an_empty_vector_is_a_batch_without_blocks():
    data, secret = encrypt("compact", np.zeros(0))
    assert len(data) == BATCH_HEADER.size + CHECKSUM
    batch = parse_batch(data, COMPACT)
    assert (batch.kind, batch.values, batch.blocks) == (FRESH, 0, 0)
    assert residues(data, COMPACT).shape == (0, N)
    total = Aggregator(COMPACT).sum([data, data])
    assert decrypt("compact", total, secret + secret).shape == (0,)


def test_a_batch_is_frozen():
    with pytest.raises(AttributeError):
        parse_batch(DATA, COMPACT).values = 3
    assert replace(parse_batch(DATA, COMPACT), values=N + 1).blocks == 2
