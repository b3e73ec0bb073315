"""What is refused: values that cannot be encrypted, and sums that no longer can be read."""

import re

import numpy as np
import pytest

from fedsens.crypto import Aggregator, CkksParameters, Decryptor, Encryptor, generate_key
from fedsens.crypto.packing import unpack
from fedsens.errors import ConfigurationError, ValueRangeError

from .kit import NAMES, N, decryptor, encryptor, key, parameters, round_trip, to_range

BAD = {
    "nan": np.nan,
    "inf": np.inf,
    "-inf": -np.inf,
    "huge": 1e300,
    "-max": -np.finfo(np.float64).max,
    "beyond": 4.0 * 64 * 1.0001,
}


def name_of(index):
    return f"layer{index // 1000}.weight"


@pytest.mark.parametrize("index", [0, N - 1, N, 2 * N + 5])
@pytest.mark.parametrize("bad", BAD)
def test_an_unusable_value_is_refused_by_the_name_of_its_parameter(bad, index):
    values = np.full(2 * N + 6, 0.123456)
    values[index] = BAD[bad]
    with pytest.raises(ValueRangeError) as caught:
        encryptor("compact").encrypt(values, name_of)
    message = str(caught.value)
    assert f"value {index} (in layer{index // 1000}.weight)" in message
    assert ("NaN or infinite" in message) == (not np.isfinite(BAD[bad]))
    assert "0.123" not in message
    assert not re.search(r"256\.|1e\+?300|1\.79", message)


def test_the_range_is_that_of_the_scaled_values():
    values = np.full(N, 2 * parameters("compact").value_range)
    with pytest.raises(ValueRangeError, match="beyond that range"):
        encryptor("compact").encrypt(values)
    encryptor("compact").encrypt(values, scale=0.5)
    with pytest.raises(ValueRangeError, match="beyond that range"):
        encryptor("compact").encrypt(values, scale=0.6)


def test_a_name_is_not_needed():
    with pytest.raises(ValueRangeError, match="got value 1 NaN or infinite"):
        encryptor("compact").encrypt(np.array([0.0, np.nan]))


def test_a_wide_float_beyond_float64_is_refused():
    with pytest.raises(ValueRangeError, match="NaN or infinite"):
        encryptor("compact").encrypt(np.array([np.finfo(np.longdouble).max]))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (np.arange(5), "int64"),
        ([1, 2], "int64"),
        (np.ones(5, bool), "bool"),
        (np.ones(5, complex), "complex128"),
        (np.array(["1.0"]), "<U3"),
        (np.array([1.0, None]), "object"),
        (np.ones((2, 3)), r"float64 of shape \(2, 3\)"),
        (np.float64(1.0), r"float64 of shape \(\)"),
    ],
)
def test_anything_but_a_float_vector_is_refused_with_its_type_and_shape(values, problem):
    with pytest.raises(ValueRangeError, match=f"expected a 1-D float vector, got {problem}"):
        encryptor("compact").encrypt(values)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("index", [0, 1, N - 1])
def test_one_spike_may_hold_all_the_energy_of_its_block(name, index):
    values = np.zeros(N)
    values[index] = -0.99 * parameters(name).value_range * np.sqrt(N)
    error = np.abs(round_trip(name, [values]) - values)
    assert (error <= parameters(name).error_bound()).all()
    with pytest.raises(ValueRangeError, match=f"value {index} beyond that range"):
        encryptor(name).encrypt(values * 1.02)


@pytest.mark.parametrize("name", NAMES)
def test_the_range_ends_where_it_is_stated(name):
    edge = np.full(N, parameters(name).value_range)
    error = np.abs(round_trip(name, [edge]) - edge)
    assert (error <= parameters(name).error_bound()).all()
    with pytest.raises(ValueRangeError):
        encryptor(name).encrypt(np.nextafter(edge, np.inf))


def test_values_that_conspire_with_the_phases_are_refused_not_wrapped():
    # All the energy in one coefficient, which the phases otherwise prevent.
    aligned = unpack(np.full((1, N // 2), 1.0 + 0.0j), parameters("compact"))
    with pytest.raises(ValueRangeError, match="another phase seed"):
        encryptor("compact").encrypt(to_range(aligned, 3.9))
    reseeded = CkksParameters(name="compact", value_range=4.0, phase_seed=7)
    assert Encryptor(generate_key(reseeded)).encrypt(to_range(aligned, 3.9))


@pytest.mark.parametrize("times", [1.05, 2.0, 3.7, 10.0, 100.0])
@pytest.mark.parametrize("kind", ["random", "constant", "spike"])
@pytest.mark.parametrize("name", NAMES)
def test_a_sum_beyond_the_range_is_refused_never_returned(name, kind, times):
    values = {
        "random": np.random.default_rng(0).normal(size=2 * N),
        "constant": np.ones(2 * N),
        "spike": np.eye(1, 2 * N)[0],
    }[kind]
    values[: N // 2] *= -1.0
    values *= parameters(name).value_range * np.sqrt(N) / np.linalg.norm(values[:N])
    clients = int(np.ceil(times * 1.03))
    values[N:] = 0.0  # one good block must not hide a bad one
    blob = encryptor(name).encrypt(values * times / clients)
    total = Aggregator(parameters(name)).sum([blob] * clients)
    with pytest.raises(ValueRangeError, match="got 1 blocks outside"):
        decryptor(name).decrypt(total)


def test_a_sum_at_the_very_edge_of_the_range_is_read():
    edge = to_range(np.random.default_rng(0).normal(size=N), 4.0)
    total = round_trip("compact", [edge / 4.0001] * 4)
    assert np.abs(total - edge * 4 / 4.0001).max() <= parameters("compact").error_bound(4)


def test_another_key_of_the_same_name_reads_nothing():
    # As if the fingerprint had been forged: the range check is the last line of defence.
    other = Decryptor(generate_key(parameters("compact")))
    other._fingerprint = key("compact").fingerprint
    with pytest.raises(ValueRangeError):
        other.decrypt(encryptor("compact").encrypt(np.zeros(3 * N)))


def test_at_least_one_process_is_needed():
    with pytest.raises(ConfigurationError, match="at least 1 process, got 0"):
        Encryptor(key("compact"), processes=0)
