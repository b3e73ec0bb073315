"""Every step between values and residues beside exact schoolbook arithmetic."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedsens.crypto import PRESETS, OneTimeSecret, parse_batch, residues
from fedsens.crypto._blocks import Keystream, decrypt_blocks, encrypt_blocks, switch_modulus
from fedsens.crypto._encoding import encode
from fedsens.crypto._seal import Ring, seal_file
from fedsens.crypto._secret import public_polynomial
from fedsens.crypto._wire import FRESH, write_batch

from .ring import (
    CONTEXT,
    NAMES,
    N,
    Q,
    centred,
    decrypt,
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


def public(ring, name, index):
    """The coefficients of a public polynomial, which is what the secret 1 makes of it."""
    one = OneTimeSecret.from_array(np.eye(1, N, dtype=np.int64)[0])
    a = public_polynomial(parameters(name), CONTEXT, index)
    return Keystream(ring, one).exact([a])[0]


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


@pytest.mark.parametrize("count", [1, 2, 3])
def test_what_opens_blocks_is_the_schoolbook_product_with_the_secret(ring, count):
    secret = ring.draw_secret() + ring.draw_secret()
    polynomials = [public_polynomial(parameters("exact"), CONTEXT, j) for j in range(count)]
    for index, mask in enumerate(Keystream(ring, secret).exact(polynomials)):
        expected = product(public(ring, "exact", index), secret.to_array()) % Q
        assert (exact(mask) == expected).all()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_what_hides_blocks_is_that_and_an_error_of_seals_distribution(ring, count):
    """e - a s with |e| <= 21, fresh for every block and every call."""
    secret = ring.draw_secret()
    polynomials = [public_polynomial(parameters("exact"), CONTEXT, j) for j in range(count)]
    errors = []
    for _ in range(2):
        for index, mask in enumerate(Keystream(ring, secret).fresh(polynomials)):
            hidden = product(public(ring, "exact", index), secret.to_array())
            errors.append(centred(exact(mask) + hidden).astype(float))
            assert 1 <= np.abs(errors[-1]).max() <= 21
            assert errors[-1].std() == pytest.approx(np.sqrt(21 / 2), rel=0.1)
            assert abs(errors[-1].mean()) < 6 * np.sqrt(21 / 2 / N)
    for index, error in enumerate(errors):
        for other in (*errors[:index], secret.to_array()):
            assert abs(np.mean(error * other)) < 6 * 10.5 / np.sqrt(N)


@pytest.mark.parametrize("name", NAMES)
def test_an_upload_is_the_rounding_of_m_plus_e_minus_a_s(name, ring):
    """So what it says of c lies within half a unit of rounding of m - a s, plus 21."""
    params, values = parameters(name), vector("full", N + 5, parameters(name).value_range)
    blob, secret = encrypt(name, values)
    message = encode(values, params)
    half = Q // (2 * params.wire_modulus) + 1 if params.wire_modulus != Q else 0
    for index, words in enumerate(residues(blob, params)):
        lifted = np.array([rounded(int(x), params.wire_modulus, Q) for x in words], object)
        hidden = product(public(ring, name, index), secret.to_array())
        error = centred(lifted + hidden - exact(message[index]))
        assert 0 < max(abs(error)) <= half + 21


@pytest.mark.parametrize("name", NAMES)
def test_decryption_is_the_schoolbook_formula(name, ring):
    """round(x q / p) + a s, evaluated at the roots from the definition, and unflattened."""
    params = parameters(name)
    blob, secret = encrypt(name, vector("full", N + 5, params.value_range))
    opened = np.concatenate(list(decrypt_blocks(parse_batch(blob, params), CONTEXT, secret)))
    for index, words in enumerate(residues(blob, params)):
        lifted = np.array([rounded(int(x), params.wire_modulus, Q) for x in words], object)
        polynomial = centred(lifted + product(public(ring, name, index), secret.to_array()))
        numbers = evaluate(polynomial) / params.phases() / params.gain
        assert np.abs(numbers.view(float) - opened[index]).max() < 1e-12 * params.value_range


def test_a_later_part_of_a_vector_takes_the_polynomials_of_its_place(ring):
    secret, values = ring.draw_secret(), vector("random", 2 * N, 0.1)
    params = parameters("precise")
    parts = [
        *encrypt_blocks(params, CONTEXT, secret, values[:N]),
        *encrypt_blocks(params, CONTEXT, secret, values[N:], first=1),
    ]
    data = write_batch(params, FRESH, 2 * N, 1, parts)
    assert np.abs(decrypt("precise", data, secret) - values).max() <= params.error_bound()


def test_no_two_blocks_hide_behind_the_same_polynomial():
    """Blocks of one upload share the secret: with one polynomial they would show differences."""
    blob, _ = encrypt("exact", np.zeros(2 * N))
    first, second = (centred(row) for row in residues(blob, parameters("exact")))
    assert np.abs((first - second).astype(float)).mean() > Q / 8
