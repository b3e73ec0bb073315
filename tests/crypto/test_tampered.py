"""Batches whose checksum is right and whose SEAL ciphertexts are not the codec's."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tenseal import sealapi

from fedsens.crypto import Aggregator
from fedsens.crypto.seal import seal_context, seal_file
from fedsens.crypto.wire import SEAL_HEADER, parse_batch
from fedsens.errors import CiphertextError, ValueRangeError

from .kit import NAMES, N, decryptor, encryptor, parameters

VALUES = np.random.default_rng(0).normal(0, 0.1, N)
COMPACT = parameters("compact")
FRESH = encryptor("compact").encrypt(VALUES)
SUM = Aggregator(COMPACT).sum([FRESH, FRESH])


def with_block(data, block, name="compact"):
    return replace(parse_batch(data, parameters(name)), blocks=(bytes(block),)).to_bytes()


def remade(name, change):
    """A resealed batch whose ciphertext went through ``change(evaluator, ciphertext)``."""
    data = Aggregator(parameters(name)).sum([encryptor(name).encrypt(VALUES)])
    context = seal_context(parameters(name))
    with seal_file() as file:
        block = parse_batch(data, parameters(name)).blocks[0]
        ciphertext = file.load(sealapi.Ciphertext, context, block)
        change(sealapi.Evaluator(context), ciphertext)
        return with_block(data, file.dump(ciphertext), name)


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


@pytest.mark.parametrize("name", NAMES)
def test_a_product_is_refused(name):
    refuse_without_a_trace(name, remade(name, lambda seal, c: seal.multiply_inplace(c, c)))


@pytest.mark.parametrize("name", NAMES)
def test_an_untransformed_ciphertext_is_refused(name):
    refuse_without_a_trace(name, remade(name, lambda seal, c: seal.transform_from_ntt_inplace(c)))


@pytest.mark.parametrize("name", NAMES)
def test_another_scale_is_refused(name):
    def rescale(seal, ciphertext):
        plaintext = sealapi.Plaintext()
        sealapi.CKKSEncoder(seal_context(parameters(name))).encode(1.0, 2.0, plaintext)
        seal.multiply_plain_inplace(ciphertext, plaintext)

    refuse_without_a_trace(name, remade(name, rescale))


def test_a_ciphertext_of_other_parameters_is_refused():
    foreign = parse_batch(encryptor("balanced").encrypt(VALUES), parameters("balanced")).blocks[0]
    refuse_without_a_trace("compact", with_block(FRESH, foreign))


def test_other_seal_objects_are_refused():
    with seal_file() as file:
        for other in (sealapi.Ciphertext(), sealapi.Plaintext()):
            refuse_without_a_trace("compact", with_block(FRESH, file.dump(other)))


@pytest.mark.parametrize(
    "change",
    [{0: 0x5F}, {2: 0x11}, {5: 0}, {5: 1}, {5: 3}, {8: 0xFF}],
    ids=["magic", "header size", "uncompressed", "zlib", "unknown", "size"],
)
def test_a_seal_header_is_checked_before_seal_sees_it(change):
    block = bytearray(parse_batch(FRESH, COMPACT).blocks[0])
    assert SEAL_HEADER.size == 16
    for offset, byte in change.items():
        assert block[offset] != byte
        block[offset] = byte
    with pytest.raises(CiphertextError, match="zstd-compressed SEAL ciphertext"):
        parse_batch(with_block(FRESH, block), COMPACT)


def test_a_block_shorter_than_a_seal_header_is_refused():
    with pytest.raises(CiphertextError, match="SEAL ciphertext, got 15 bytes"):
        parse_batch(with_block(FRESH, bytes(15)), COMPACT)


@settings(max_examples=150, deadline=None)
@given(
    data=st.sampled_from([FRESH, SUM]),
    flips=st.lists(st.tuples(st.booleans(), st.integers(0, 2**20)), min_size=1, max_size=4),
)
def test_a_tampered_payload_is_refused_by_seal_or_by_its_range(data, flips):
    block = bytearray(parse_batch(data, COMPACT).blocks[0])
    for near_the_start, position in flips:
        size = 100 if near_the_start else len(block) - SEAL_HEADER.size
        block[SEAL_HEADER.size + position // 8 % size] ^= 1 << position % 8
    tampered = with_block(data, block)
    try:
        values = decryptor("compact").decrypt(tampered)
    except (CiphertextError, ValueRangeError):
        return
    # Two equal flips, or one in a byte that SEAL ignores.
    assert np.abs(values - VALUES * (1 + (data is SUM))).max() < 1e-6
