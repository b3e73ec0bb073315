"""SEAL's objects, streams and randomness as the codec uses them."""

import os
from functools import partial
from math import comb

import numpy as np
import pytest
from tenseal import sealapi

from fedsens.crypto import OneTimeSecret
from fedsens.crypto._parameters import MODULUS, MOST_MODULUS_BITS, SECURITY_BITS
from fedsens.crypto._seal import ONE, SEAL_HEADER, Ring, _residues, seal_context, seal_file
from fedsens.errors import CryptoError

from .ring import N, Q, parameters


@pytest.fixture
def file():
    with seal_file() as file:
        yield file


@pytest.fixture
def ring(file):
    return Ring(file)


def test_the_security_is_what_seals_table_admits():
    data = seal_context().first_context_data()
    assert seal_context().parameters_set()
    assert data.qualifiers().sec_level == sealapi.SEC_LEVEL_TYPE.TC256
    assert SECURITY_BITS == parameters("precise").security_bits == 256
    most = sealapi.CoeffModulus.MaxBitCount(N, sealapi.SEC_LEVEL_TYPE.TC256)
    assert data.total_coeff_modulus_bit_count() <= most == MOST_MODULUS_BITS


def test_the_only_modulus_is_the_first_prime_above_2_to_54_that_the_transform_takes():
    (prime,) = seal_context().first_context_data().parms().coeff_modulus()
    assert prime.value() == MODULUS == Q
    assert prime.is_prime()
    others = range(2**54 + 1, Q, 2 * N)
    assert not any(sealapi.Modulus(each).is_prime() for each in others)


def test_a_secret_has_seals_error_distribution(ring):
    """A centred binomial of 42 coins: every frequency within six standard deviations."""
    drawn = np.concatenate([ring.draw_secret().to_array() for _ in range(16)])
    for value in range(-21, 22):
        expected = len(drawn) * comb(42, 21 + value) / 2**42
        found = int((drawn == value).sum())
        assert abs(found - expected) < 6 * np.sqrt(expected) + 3
    assert drawn.var() == pytest.approx(21 / 2, rel=0.05)
    # Coefficients of one secret and of another, or next to each other, are unrelated.
    for other in (np.roll(drawn, 1), np.roll(drawn, N)):
        assert abs(np.mean(drawn * other)) < 6 * 10.5 / np.sqrt(len(drawn))


def test_no_secret_is_drawn_twice(ring):
    drawn = {ring.draw_secret().to_array().tobytes() for _ in range(20)}
    assert len(drawn) == 20


@pytest.mark.parametrize("name", ["spread", "one", "largest"])
def test_a_polynomial_survives_the_way_to_seal_and_back(ring, file, name, rng):
    words = {
        "spread": rng.integers(0, Q, N, np.uint64),
        "one": np.eye(1, N, 17, np.uint64)[0],
        "largest": np.full(N, Q - 1, np.uint64),
    }[name].astype("<u8")
    plaintext = sealapi.Plaintext()
    # Decrypting (0, a) under the constant 1 leaves a, transformed.
    key = ring.secret_key(OneTimeSecret.from_array(np.eye(1, N, dtype=np.int64)[0]))
    sealapi.Decryptor(seal_context(), key).decrypt(ring.public(words), plaintext)
    coefficients = ring.coefficients([plaintext])[0]
    pair = ring._pair(coefficients.data, ONE, transformed=False)
    ring.evaluator.transform_to_ntt_inplace(pair)
    assert (_residues(file.stream(pair), True) == [words, np.ones(N)]).all()


def test_what_seal_writes_of_other_objects_is_refused(ring, file):
    key = sealapi.KeyGenerator(seal_context()).secret_key()
    full = sealapi.Ciphertext()
    seeded = sealapi.Encryptor(seal_context(), key).encrypt_zero_symmetric()
    sealapi.Encryptor(seal_context(), key).encrypt_zero_symmetric(full)
    product = sealapi.Ciphertext()
    ring.evaluator.multiply(full, full, product)
    for other in (seeded, product, key):
        for transformed in (False, True):
            with pytest.raises(CryptoError, match="in the form of version 4"):
                _residues(file.stream(other), transformed)
    pair = file.stream(ring.public(np.full(N, 5, "<u8")))
    assert (_residues(pair, True) == [[0], [5]]).all()
    with pytest.raises(CryptoError):
        _residues(pair, False)


def test_a_residue_that_is_not_below_q_is_refused_by_seal_itself(ring):
    words = np.zeros(N, "<u8")
    words[9] = Q
    with pytest.raises((RuntimeError, ValueError)):
        ring.public(words)


def test_the_header_is_seals_own(ring, file):
    ring._one.save(file._path)
    dump = os.pread(file._descriptor, SEAL_HEADER.size, 0)
    magic, size, *_, total = SEAL_HEADER.unpack(dump)
    assert (magic, size) == (sealapi.Serialization.SEALHeader().magic, SEAL_HEADER.size)
    assert total == os.fstat(file._descriptor).st_size


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_file_that_held_a_secret_is_overwritten(in_memory, monkeypatch):
    """On the disk too, where the system has no anonymous files."""
    if not in_memory:
        monkeypatch.delattr(os, "memfd_create")
    with seal_file() as file:
        ring = Ring(file)
        secret = OneTimeSecret.from_array(np.ones(N, np.int64))
        for work in (ring.draw_secret, partial(ring.secret_key, secret)):
            work()
            size = os.fstat(file._descriptor).st_size
            assert size > 1000
            assert not any(os.pread(file._descriptor, size, 0))
        path = file._path
        assert path.startswith("/proc/") == in_memory
    assert not os.path.exists(path)
