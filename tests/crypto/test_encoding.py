"""The half-size transform beside the definition, SEAL's encoder and a naive loop."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tenseal import sealapi

from fedsens.crypto._encoding import decode, encode
from fedsens.crypto._seal import Ring, centre, seal_context, seal_file

from .ring import KINDS, NAMES, N, Q, evaluate, interpolate, parameters, vector


def naive_numbers(values, params):
    """Two values to a complex number, flattened and scaled, one by one."""
    phases = [complex(phase) for phase in params.phases()]
    blocks = []
    for low in range(0, len(values), N):
        block = [float(value) for value in values[low : low + N]]
        block += [0.0] * (N - len(block))
        blocks.append([
            complex(block[2 * place], block[2 * place + 1]) * phases[place] * params.gain
            for place in range(N // 2)
        ])
    return np.array(blocks).reshape(-1, N // 2)


@settings(max_examples=20, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    size=st.sampled_from([0, 1, 2, N - 1, N, N + 1, 2 * N]),
    scale=st.sampled_from([1.0, -0.5, 0.0]),
    seed=st.integers(0, 99),
)
def test_encoding_is_the_canonical_embedding_of_flattened_pairs(name, size, scale, seed):
    values = np.random.default_rng(seed).normal(size=size)
    coefficients = encode(values, parameters(name), scale)
    assert coefficients.dtype == np.int64
    numbers = naive_numbers(scale * values, parameters(name))
    assert coefficients.shape == (len(numbers), N)
    for row, block in zip(coefficients, numbers, strict=True):
        # Half a unit of rounding, and float64's of numbers of 2^50.
        assert np.abs(row - interpolate(block).real).max() <= 0.5 + 2.0**50 * 1e-14


@settings(max_examples=20, deadline=None)
@given(name=st.sampled_from(NAMES), blocks=st.integers(0, 2), seed=st.integers(0, 99))
def test_decoding_is_evaluation_at_the_roots_unflattened(name, blocks, seed):
    params = parameters(name)
    coefficients = np.random.default_rng(seed).integers(-Q // 2, Q // 2, (blocks, N))
    values = decode(coefficients, params)
    assert values.shape == (blocks, N)
    for row, block in zip(coefficients, values, strict=True):
        numbers = evaluate(row) / params.phases() / params.gain
        assert np.abs(block - numbers.view(float)).max() < 1e-12 * 30 * params.value_range


@settings(max_examples=20, deadline=None)
@given(size=st.sampled_from([0, 1, N - 1, N, N + 1]), seed=st.integers(0, 99))
def test_decoding_undoes_encoding_up_to_its_rounding(size, seed):
    params = parameters("exact")
    values = np.random.default_rng(seed).normal(size=size)
    back = decode(encode(values, params), params).reshape(-1)
    padded = np.pad(values, (0, len(back) - size))
    rounding = 7 * np.sqrt(N / 24) / params.gain
    assert np.abs(back - padded).max(initial=0) <= rounding + 1e-14 * params.value_range


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["tiny", "exact"])
def test_float64_rounds_the_transform_by_less_than_is_stated(name, kind):
    params = parameters(name)
    values = vector(kind, 16 * N, params.value_range, seed=1)
    error = (decode(encode(values, params), params) - values.reshape(-1, N)) ** 2
    coefficients = N / 24 / params.gain**2  # the variance that rounding coefficients causes
    assert (error.mean(axis=1) <= 1.1 * (coefficients + params._float64**2)).all()
    bound = 7 * np.sqrt(coefficients) + params._float64 * np.sqrt(N)
    assert np.sqrt(error.max()) <= bound


def test_seals_encoder_gives_the_same_polynomial_for_the_same_numbers():
    """It knows another order: its slot j is at the root 3^j, or, here, the conjugate of that."""
    params, values = parameters("precise"), np.random.default_rng(0).normal(size=N)
    numbers = naive_numbers(values, params)[0]
    exponents = np.array([pow(3, j, 2 * N) for j in range(N // 2)])
    conjugate = exponents % 4 == 3
    places = np.where(conjugate, 2 * N - exponents, exponents) // 4
    slots = np.where(conjugate, numbers[places].conj(), numbers[places])
    plaintext = sealapi.Plaintext()
    sealapi.CKKSEncoder(seal_context()).encode(slots.tolist(), 1.0, plaintext)
    with seal_file() as file:
        seals = centre(Ring(file).coefficients([plaintext])[0])
    ours = encode(values, params)[0]
    assert np.abs(ours).max() > 2**49
    assert np.abs(seals - ours).max() <= 2  # each rounds float64 numbers of 2^50 in its own way


@pytest.mark.parametrize("kind", ["constant", "alternating", "spike", "ramp", "random"])
def test_coefficients_look_gaussian_whatever_the_data(kind):
    values = {
        "constant": np.ones(N),
        "alternating": np.tile([1.0, -1.0], N // 2),
        "spike": np.eye(1, N)[0],
        "ramp": np.arange(N) / N,
        "random": np.random.default_rng(0).normal(size=N),
    }[kind]
    values *= parameters("compact").value_range * np.sqrt(N) / np.linalg.norm(values)
    spectrum = encode(values, parameters("compact"))[0]
    sigma = parameters("compact").gain * parameters("compact").value_range * np.sqrt(2 / N)
    assert spectrum.std() == pytest.approx(sigma, rel=0.02)
    assert np.abs(spectrum).max() < 5 * sigma
    assert sigma * 7 == pytest.approx(Q / 2, rel=1e-4)


def test_without_the_phases_a_constant_would_overflow():
    params = parameters("compact")
    unflattened = naive_numbers(np.full(N, 4.0), params)[0] / params.phases()
    assert np.abs(interpolate(unflattened)).max() > Q / 2
