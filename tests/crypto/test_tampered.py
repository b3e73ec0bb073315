"""Batches whose checksum is right and whose ciphertexts are not the codec's."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsens.crypto import Aggregator
from fedsens.crypto.residues import SEED, block_size
from fedsens.crypto.wire import parse_batch
from fedsens.errors import CiphertextError, ValueRangeError

from .kit import NAMES, N, decryptor, encryptor, parameters

VALUES = np.random.default_rng(0).normal(0, 0.1, N)
COMPACT = parameters("compact")
FRESH = encryptor("compact").encrypt(VALUES)
SUM = Aggregator(COMPACT).sum([FRESH, FRESH])


def with_block(data, block, name="compact"):
    return replace(parse_batch(data, parameters(name)), blocks=(bytes(block),)).to_bytes()


def refuse_without_a_trace(name, data):
    with pytest.raises(CiphertextError):
        decryptor(name).decrypt(data)
    aggregator = Aggregator(parameters(name))
    good = encryptor(name).encrypt(VALUES)
    aggregator.add(good)
    before = aggregator.result()
    with pytest.raises(CiphertextError):
        aggregator.add(data)
    assert aggregator.result() == before


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_residues_that_are_not_below_the_modulus_are_refused(name, fresh):
    upload = encryptor(name).encrypt(VALUES)
    data = upload if fresh else Aggregator(parameters(name)).sum([upload])
    size = block_size(max(parameters(name).residue_widths), fresh)
    refuse_without_a_trace(name, with_block(data, bytes(size - 1) + b"\xff", name))


def test_a_ciphertext_of_other_parameters_is_refused():
    foreign = parse_batch(encryptor("balanced").encrypt(VALUES), parameters("balanced")).blocks[0]
    refuse_without_a_trace("compact", with_block(FRESH, foreign))


@pytest.mark.parametrize("width", [0, 1, 3, 6, 8])
def test_another_width_is_refused_before_seal_sees_it(width):
    data = with_block(FRESH, bytes(SEED + N * width))
    with pytest.raises(CiphertextError, match="bytes per residue"):
        parse_batch(data, COMPACT)


def test_a_second_ciphertext_that_seal_refuses_leaves_the_sum_as_it_was():
    values = np.concatenate([VALUES, VALUES])
    upload = encryptor("compact").encrypt(values)
    batch = parse_batch(upload, COMPACT)
    bad = bytes(block_size(5, True) - 1) + b"\xff"
    aggregator = Aggregator(COMPACT)
    aggregator.add(upload)
    before = aggregator.result()
    with pytest.raises(CiphertextError, match="ciphertext 1"):
        aggregator.add(replace(batch, blocks=(bytes(batch.blocks[0]), bad)).to_bytes())
    assert (aggregator.result(), aggregator.summands) == (before, 1)


@settings(max_examples=150, deadline=None)
@given(
    data=st.sampled_from([FRESH, SUM]),
    flips=st.lists(st.tuples(st.booleans(), st.integers(0, 2**20)), min_size=1, max_size=4),
)
def test_a_tampered_payload_is_refused_by_seal_or_by_its_range(data, flips):
    block = bytearray(parse_batch(data, COMPACT).blocks[0])
    for near_the_start, position in flips:
        size = 100 if near_the_start else len(block)
        block[position // 8 % size] ^= 1 << position % 8
    tampered = with_block(data, block)
    try:
        values = decryptor("compact").decrypt(tampered)
    except (CiphertextError, ValueRangeError):
        return
    # Only if flips undid each other.
    assert np.abs(values - VALUES * (1 + (data is SUM))).max() < 1e-6
