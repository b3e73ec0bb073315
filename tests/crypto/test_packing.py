"""The vectorised packing beside a naive loop, and the spectrum it is there for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsens.crypto._packing import pack, unpack

from .kit import N, embed, parameters

SIGMA_LIMIT = 7.0


def naive_pack(values, params):
    phases = [complex(phase) for phase in params.phases()]
    blocks = []
    for low in range(0, len(values), N):
        block = [float(value) for value in values[low : low + N]]
        block += [0.0] * (N - len(block))
        blocks.append([
            complex(block[2 * slot], block[2 * slot + 1]) * phases[slot] * params.gain
            for slot in range(N // 2)
        ])
    return blocks


def naive_unpack(blocks, params):
    phases = [complex(phase) for phase in params.phases()]
    values = []
    for block in blocks:
        for slot, number in enumerate(block):
            flat = number * phases[slot].conjugate() / params.gain
            values += [flat.real, flat.imag]
    return values


@settings(max_examples=12, deadline=None)
@given(size=st.sampled_from([0, 1, 2, N - 1, N, N + 1, 2 * N]), seed=st.integers(0, 99))
def test_fast_packing_equals_the_loop(size, seed):
    values = np.random.default_rng(seed).normal(size=size)
    slots = pack(values, parameters("compact"))
    oracle = naive_pack(values, parameters("compact"))
    assert slots.shape == (-(-size // N), N // 2)
    np.testing.assert_allclose(slots, np.array(oracle).reshape(slots.shape), rtol=1e-14)

    loop = naive_unpack(oracle, parameters("compact"))
    back = unpack(slots, parameters("compact"))
    np.testing.assert_allclose(back, loop, rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(back, np.pad(values, (0, len(back) - size)), rtol=0, atol=1e-14)


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
    spectrum = embed(pack(values, parameters("compact"))[0]).real
    sigma = parameters("compact").gain * parameters("compact").value_range * np.sqrt(2 / N)
    assert spectrum.std() == pytest.approx(sigma, rel=0.02)
    assert np.abs(spectrum).max() < 5 * sigma
    assert SIGMA_LIMIT * sigma == pytest.approx(parameters("compact").modulus / 2, rel=1e-4)


def test_without_the_phases_a_constant_would_overflow():
    slots = pack(np.full(N, 4.0), parameters("compact"))[0] / parameters("compact").phases()
    assert np.abs(embed(slots)).max() > parameters("compact").modulus / 2
