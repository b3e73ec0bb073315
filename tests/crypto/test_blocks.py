"""Every step between values and residues beside exact schoolbook arithmetic."""

import hashlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tenseal import sealapi

from fedsens.crypto import OneTimeSecret, parse_batch, residues
from fedsens.crypto._blocks import decrypt_blocks, encrypt_blocks, switch_modulus
from fedsens.crypto._packing import pack, unpack
from fedsens.crypto._parameters import PRESETS
from fedsens.crypto._seal import Ring, public_seed, seal_context, seal_file

from .kit import (
    CONTEXT,
    NAMES,
    N,
    Q,
    centred,
    encrypt,
    evaluate,
    exact,
    parameters,
    product,
    vector,
)

MODULI = sorted({preset.modulus for preset in PRESETS.values()})


def rounded(number, source, target):
    """round(number target / source) modulo target in whole numbers; there are no ties."""
    return (2 * number * target + source) // (2 * source) % target


@pytest.fixture
def ring():
    with seal_file() as file:
        yield Ring(file)


def public(ring, seed):
    """The coefficients of a public polynomial, from SEAL: transformed back, as c0 of a pair."""
    pair, plaintext = ring.public(seed), sealapi.Plaintext()
    # Decrypting (0, a) under the constant 1 gives a.
    one = np.zeros(N, np.int64)
    one[0] = 1
    key = ring.secret_key(OneTimeSecret.from_array(one))
    sealapi.Decryptor(seal_context(), key).decrypt(pair, plaintext)
    return ring.coefficients(plaintext)


@settings(max_examples=300, deadline=None)
@given(
    target=st.sampled_from(MODULI),
    up=st.booleans(),
    data=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=40),
)
@example(target=MODULI[0], up=False, data=[0, 1, Q - 1, Q // 2, Q // 2 + 1])
@example(target=MODULI[2], up=True, data=[0, 1, MODULI[2] - 1])
def test_switching_the_modulus_is_exact_rounding(target, up, data):
    source, other = (target, Q) if up else (Q, target)
    numbers = [number % source for number in data]
    switched = switch_modulus(np.array(numbers, np.uint64), source, other)
    assert switched.dtype == np.uint64
    assert [int(x) for x in switched] == [rounded(x, source, other) for x in numbers]


@pytest.mark.parametrize("target", MODULI)
def test_rounding_is_exact_where_it_is_closest_to_a_tie(target):
    """The residues whose quotient lies nearest to a half, where a float's guess is wrong."""
    halves = (2 * np.random.default_rng(0).integers(0, target - 1, 500).astype(object) + 1) * Q
    near = [int(half) // (2 * target) + shift for half in halves for shift in (-1, 0, 1)]
    switched = switch_modulus(np.array(near, np.uint64), Q, target)
    assert [int(x) for x in switched] == [rounded(x, Q, target) for x in near]


@pytest.mark.parametrize("target", MODULI)
def test_what_is_rounded_away_comes_back_within_half_a_unit(target, rng):
    words = rng.integers(0, Q, 4096, np.uint64)
    back = switch_modulus(switch_modulus(words, Q, target), target, Q)
    error = centred(exact(back) - exact(words))
    assert max(abs(error)) <= Q // (2 * target) + 1


def test_an_upload_is_the_rounding_of_m_plus_e_minus_a_s(ring):
    """c0 + a s - m is SEAL's error, and so is what the wire says within a unit of rounding."""
    values = vector("random", N, 1.0)
    seed = public_seed(parameters("exact"), CONTEXT, 0)
    secret = ring.draw_secret()
    (block,) = encrypt_blocks(parameters("exact"), CONTEXT, secret, values)
    plaintext = sealapi.Plaintext()
    slots = pack(values, parameters("exact"))[0]
    sealapi.CKKSEncoder(seal_context()).encode(slots.tolist(), 1.0, plaintext)
    message = ring.coefficients(plaintext)
    low, middle, high = (
        np.frombuffer(block, kind, N, at).astype(np.uint64)
        for kind, at in (("<u4", 0), ("<u2", 4 * N), ("u1", 6 * N))
    )
    sent = low | middle << np.uint64(32) | high << np.uint64(48)
    key_part = product(public(ring, seed), secret.to_array())
    error = centred(exact(sent) + key_part - exact(message)).astype(float)
    assert 1 <= np.abs(error).max() <= 21
    assert error.std() == pytest.approx(np.sqrt(21 / 2), rel=0.1)
    assert abs(error.mean()) < 6 * np.sqrt(21 / 2 / N)


@pytest.mark.parametrize("name", NAMES)
def test_decryption_is_the_schoolbook_formula(name, ring):
    """round(x q / p) + a s, evaluated at the roots by a Fourier transform, and unflattened."""
    blob, secret = encrypt(name, vector("full", N + 5, parameters(name).value_range))
    opened = np.concatenate(
        list(decrypt_blocks(parse_batch(blob, parameters(name)), CONTEXT, secret))
    )
    for index, words in enumerate(residues(blob, parameters(name))):
        p = parameters(name).wire_modulus
        lifted = np.array([rounded(int(x), p, Q) for x in words], object)
        seed = public_seed(parameters(name), CONTEXT, index)
        polynomial = centred(lifted + product(public(ring, seed), secret.to_array()))
        values = unpack(evaluate(polynomial)[None], parameters(name))
        assert np.abs(values - opened[index]).max() < 1e-11 * parameters(name).value_range


def test_public_polynomials_are_frozen_uniform_and_of_their_seed(ring):
    # Another expansion, of another version of SEAL, would part clients: raise the wire's version.
    seeds = [public_seed(parameters("precise"), CONTEXT, index) for index in (0, 0, 1)]
    first, again, second = (public(ring, seed) for seed in seeds)
    assert (first == again).all()
    assert hashlib.sha256(first.tobytes()).hexdigest()[:32] == "3074ea6aadc699e73a12aa057b1c9573"
    for words in (first, second, first - second):
        numbers = centred(words).astype(float) / Q
        assert abs(numbers.mean()) < 6 / np.sqrt(12 * N)
        assert numbers.std() == pytest.approx(1 / np.sqrt(12), rel=0.05)


def test_seeds_are_bound_to_context_parameters_and_block():
    seeds = [
        public_seed(parameters(name), context, index)
        for name in NAMES
        for context in (b"", b"a", b"ab", CONTEXT)
        for index in (0, 1, 2**32)
    ]
    assert len(set(seeds)) == len(seeds)
    assert {len(seed) for seed in seeds} == {64}
    # A context cannot run into the index that follows it.
    assert public_seed(parameters("tiny"), b"\1" + bytes(7), 0) not in {
        public_seed(parameters("tiny"), b"", 1),
        public_seed(parameters("tiny"), b"\1", 0),
    }


def test_seeds_are_frozen():
    # Changing it parts clients of different versions: raise the version of the wire with it.
    assert (
        public_seed(parameters("precise"), CONTEXT, 1).hex()[:32]
        == "ae712d5f6b4e1bcab7fc9b0e2709e163"
    )


def test_no_two_blocks_hide_behind_the_same_polynomial():
    """Blocks of one upload share the secret: with one polynomial they would show differences."""
    blob, _ = encrypt("exact", np.zeros(2 * N))
    first, second = (centred(row) for row in residues(blob, parameters("exact")))
    assert np.abs((first - second).astype(float)).mean() > Q / 8
