"""The wire form of a ciphertext, against SEAL's own stream."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tenseal import sealapi

from fedsens.crypto.residues import HEADER, block_size, form_of
from fedsens.crypto.seal import seal_context, seal_file
from fedsens.errors import CiphertextError, CryptoError

from .kit import NAMES, N, encryptor, key, parameters


def encrypted(name, fresh):
    seal = sealapi.Encryptor(seal_context(parameters(name)), key(name).seal_key())
    if fresh:
        return seal.encrypt_zero_symmetric()
    ciphertext = sealapi.Ciphertext()
    seal.encrypt_zero_symmetric(ciphertext)
    return ciphertext


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_expanding_gives_back_what_seal_wrote(name, fresh):
    with seal_file() as file:
        for _ in range(20):
            stream = file.stream(encrypted(name, fresh))
            block = form_of(parameters(name), fresh).shrink(stream)
            assert len(block) <= block_size(max(parameters(name).residue_widths), fresh)
            rebuilt = b"".join(form_of(parameters(name), fresh).expand(block))
            assert rebuilt[HEADER.size :] == stream
            assert HEADER.unpack_from(rebuilt)[-1] == len(rebuilt)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    fresh=st.booleans(),
    seed=st.integers(0, 2**32),
    large=st.booleans(),
)
def test_any_residues_survive(name, fresh, seed, large):
    params, count = parameters(name), N if fresh else 2 * N
    words = np.random.default_rng(seed).integers(0, params.modulus, count, np.uint64)
    words[seed % count] = params.modulus - 1 if large else 0
    with seal_file() as file:
        stream = file.stream(encrypted(name, fresh))
    start = stream.index(np.uint64(count).tobytes(), 73) + 8
    changed = stream[:start] + words.tobytes() + stream[start + 8 * count :]
    block = form_of(params, fresh).shrink(changed)
    # The oracle: the residues byte by byte, as Python's integers have them.
    residues = block[64:] if fresh else block
    width = len(residues) // count
    planes = [residues[: 4 * count], residues[4 * count :]]
    low = int.from_bytes(planes[0][4 * 7 : 4 * 8], "little")
    assert low == int(words[7]) % 2**32
    assert width >= -(-int(words.max()).bit_length() // 8)
    assert b"".join(form_of(params, fresh).expand(block))[HEADER.size :] == changed


@pytest.mark.parametrize("name", NAMES)
def test_what_seal_writes_of_other_objects_is_refused(name):
    context = seal_context(parameters(name))
    ciphertext = encrypted(name, fresh=False)
    product, untransformed, scaled = (encrypted(name, fresh=False) for _ in range(3))
    evaluator = sealapi.Evaluator(context)
    evaluator.multiply_inplace(product, ciphertext)
    evaluator.transform_from_ntt_inplace(untransformed)
    two = sealapi.Plaintext()
    sealapi.CKKSEncoder(context).encode(1.0, 2.0, two)
    evaluator.multiply_plain_inplace(scaled, two)
    with seal_file() as file:
        for other in (product, untransformed, scaled, two, encrypted(name, fresh=True)):
            with pytest.raises(CryptoError, match="another"):
                form_of(parameters(name), False).shrink(file.stream(other))


@pytest.mark.parametrize("size", [0, 63, 64, 64 + 4 * N - 1, 64 + 4 * N + 1, 64 + 6 * N])
def test_blocks_of_impossible_size_are_refused(size):
    with pytest.raises(CiphertextError):
        form_of(parameters("compact"), True).expand(bytes(size))


def test_seal_reads_the_wire_form_of_an_upload():
    from fedsens.crypto.wire import parse_batch

    params = parameters("compact")
    batch = parse_batch(encryptor("compact").encrypt(np.ones(N)), params)
    with seal_file() as file:
        stream = form_of(params, True).expand(batch.blocks[0])
        ciphertext = file.load(sealapi.Ciphertext, seal_context(params), *stream)
    assert (ciphertext.size(), ciphertext.scale, ciphertext.is_ntt_form()) == (2, 1.0, True)
