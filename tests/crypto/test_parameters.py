import hashlib
import math

import numpy as np
import pytest
from pydantic import ValidationError

from fedsens.crypto import MAP_PARAMETERS, PRESETS, CkksParameters
from fedsens.errors import ConfigurationError

from .ring import NAMES, N, Q, parameters

# Changing a digest parts deployed peers: raise the version of the wire with it.
DIGESTS = {
    "tiny": "220debb91f6e8ea84ab893fbcc0eabb9",
    "compact": "87cad1e2f7c3682f67f15989fe6f0de2",
    "precise": "66fe196a9a531fa0aeed6a88c37d472a",
    "exact": "46ecfd3702ebf81644b8fb186a4586f9",
}


def is_prime(number):
    return number > 1 and all(number % each for each in range(2, math.isqrt(number) + 1))


@pytest.mark.parametrize("name", NAMES)
def test_digest_of_a_preset_is_frozen(name):
    assert parameters(name).digest.hex() == DIGESTS[name]


def test_digest_of_the_map_parameters_is_frozen():
    assert MAP_PARAMETERS.digest.hex() == "62c90e0ede135c873f9b6aa5a5523ded"
    assert (MAP_PARAMETERS.name, MAP_PARAMETERS.value_range) == ("exact", 1024.0)


def test_digest_differs_where_anything_differs():
    sets = [
        CkksParameters(name=name, value_range=limit, phase_seed=seed)
        for name in NAMES
        for limit in (4.0, np.nextafter(4.0, 5.0))
        for seed in (0, 1)
    ]
    assert len({each.digest for each in sets}) == len(sets)
    assert CkksParameters.preset("compact", 4.0).digest == parameters("compact").digest


@pytest.mark.parametrize(
    ("name", "size", "modulus"),
    [("tiny", 2, 65521), ("compact", 3, 16777213), ("precise", 4, 4294967291), ("exact", 7, Q)],
)
def test_a_preset_is_its_bytes_and_the_largest_prime_that_fits_them(name, size, modulus):
    params = parameters(name)
    assert (params.wire_bytes, params.wire_modulus) == (size, modulus)
    assert params.bytes_per_parameter == params.bytes_per_parameter_down == size
    assert modulus < 256**size
    if name != "exact":  # q itself: see test_seal.py
        assert is_prime(modulus)
        assert not any(map(is_prime, range(modulus + 1, 256**size)))


def test_the_default_is_precise():
    assert CkksParameters.preset() == CkksParameters.preset("precise")
    assert CkksParameters(value_range=4.0) == CkksParameters.preset()
    assert list(PRESETS) == ["tiny", "compact", "precise", "exact"]


@pytest.mark.parametrize(("values", "blocks"), [(0, 0), (1, 1), (N, 1), (N + 1, 2), (10**8, 24415)])
def test_blocks_hold_n_values(values, blocks):
    assert parameters("precise").blocks(values) == blocks


def test_phases_are_deterministic_public_unit_numbers():
    phases = parameters("compact").phases()
    assert phases.shape == (N // 2,)
    assert np.abs(np.abs(phases) - 1).max() < 1e-15
    # Rounded, because the last bit of a cosine is the C library's choice.
    digest = hashlib.sha256(np.round(phases.view(np.float64) * 2**30).astype("<i4").tobytes())
    assert digest.hexdigest()[:32] == "92c5c17e39fdeec5fb8cdead98ccbdd5"
    assert (phases == parameters("precise").phases()).all()


def test_another_seed_gives_unrelated_phases():
    other = CkksParameters(name="compact", value_range=4.0, phase_seed=1).phases()
    correlation = np.vdot(other, parameters("compact").phases()) / (N / 2)
    assert abs(correlation) < 5 / np.sqrt(N / 2)


@pytest.mark.parametrize("name", NAMES)
def test_errors_grow_with_clients_and_range(name):
    params = parameters(name)
    wider = CkksParameters.preset(name, 2 * params.value_range)
    for error in ("error_rms", "error_bound"):
        stated = [getattr(params, error)(clients) for clients in (1, 2, 10, 100)]
        assert stated == sorted(stated)
        assert getattr(wider, error)(3) == pytest.approx(2 * getattr(params, error)(3))
        assert getattr(params, error)() == stated[0]
    assert params.error_rms(3) < params.error_bound(3) < 0.01 * params.value_range


def test_the_errors_of_ten_clients_are_those_the_presets_are_chosen_for():
    stated = [parameters(name).error_rms(10) for name in ("tiny", "compact", "precise")]
    assert stated == pytest.approx([7.8e-4, 3.0e-6, 1.2e-8], rel=0.02)
    # Rounding to p leaves 0.29 units; a modulus q = p would leave the RLWE noise of 3.2 units.
    step = Q / parameters("compact").wire_modulus
    small_q = math.sqrt(10 * 10.5 * N / 2) * step / parameters("compact").gain
    assert small_q / stated[1] == pytest.approx(11, rel=0.03)


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(ConfigurationError, match="tiny, compact, precise, exact, got 'balanced'"):
        CkksParameters.preset("balanced")


@pytest.mark.parametrize("value_range", [0.0, -1.0, 2.0**21, math.nan, math.inf])
def test_an_impossible_range_of_a_preset_is_a_configuration_error(value_range):
    with pytest.raises(ConfigurationError, match="value_range: "):
        CkksParameters.preset("precise", value_range)


@pytest.mark.parametrize(
    "change",
    [
        {"value_range": 0.0},
        {"value_range": float("inf")},
        {"value_range": float("nan")},
        {"phase_seed": -1},
        {"name": "balanced"},
        {"degree": 8192},
    ],
)
def test_impossible_parameters_are_refused(change):
    with pytest.raises(ConfigurationError, match=f"{next(iter(change))}: "):
        CkksParameters(**{"value_range": 4.0} | change)


def test_parameters_are_frozen():
    with pytest.raises(ValidationError):
        parameters("compact").value_range = 8.0
