"""What is refused before anything is encrypted."""

import re

import numpy as np
import pytest

from fedsens.crypto import CkksParameters, Encryptor, check_range
from fedsens.crypto._encoding import decode
from fedsens.errors import ConfigurationError, ValueRangeError

from .kit import CONTEXT, NAMES, N, encrypt, parameters, round_trip, to_range

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
        encrypt("compact", values, name_of)
    message = str(caught.value)
    assert f"got layer{index // 1000}.weight" in message
    assert ("NaN or infinite" in message) == (not np.isfinite(BAD[bad]))
    assert "0.123" not in message
    assert not re.search(r"256\.|1e\+?300|1\.79", message)


def test_the_range_is_that_of_the_scaled_values():
    values = np.full(N, 2 * parameters("compact").value_range)
    with pytest.raises(ValueRangeError, match="beyond that range"):
        encrypt("compact", values)
    encrypt("compact", values, scale=0.5)
    with pytest.raises(ValueRangeError, match="beyond that range"):
        encrypt("compact", values, scale=0.6)


def test_the_range_can_be_checked_before_anything_is_encrypted():
    check_range(np.ones(N), parameters("compact"))
    with pytest.raises(ValueRangeError, match=r"got layer0\.weight NaN or infinite"):
        check_range(np.array([0, 0, 0, np.nan]), parameters("compact"), name_of)


def test_a_name_is_not_needed():
    with pytest.raises(ValueRangeError, match="got value 1 NaN or infinite"):
        encrypt("compact", np.array([0.0, np.nan]))


def test_a_wide_float_beyond_float64_is_refused():
    with pytest.raises(ValueRangeError, match="NaN or infinite"):
        encrypt("compact", np.array([np.finfo(np.longdouble).max]))


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
        encrypt("compact", values)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("index", [0, 1, N - 1])
def test_one_spike_may_hold_all_the_energy_of_its_block(name, index):
    values = np.zeros(N)
    values[index] = -0.99 * parameters(name).value_range * np.sqrt(N)
    error = np.abs(round_trip(name, [values]) - values)
    assert (error <= parameters(name).error_bound()).all()
    with pytest.raises(ValueRangeError, match=f"value {index} beyond that range"):
        encrypt(name, values * 1.02)


@pytest.mark.parametrize("name", NAMES)
def test_the_range_ends_where_it_is_stated(name):
    edge = np.full(N, parameters(name).value_range)
    error = np.abs(round_trip(name, [edge]) - edge)
    assert (error <= parameters(name).error_bound()).all()
    with pytest.raises(ValueRangeError):
        encrypt(name, np.nextafter(edge, np.inf))


def test_values_that_conspire_with_the_phases_are_refused_not_wrapped():
    # All the energy in one coefficient, which the phases otherwise prevent.
    one = np.eye(1, N, dtype=np.int64) * 2**50
    aligned = decode(one, parameters("compact"))[0]
    with pytest.raises(ValueRangeError, match="blocks 0 to 0; choose another phase seed"):
        encrypt("compact", to_range(aligned, 3.9))
    with pytest.raises(ValueRangeError, match="blocks 16 to 17;"):
        encrypt("compact", np.concatenate([np.zeros(17 * N), to_range(aligned, 3.9)]))
    reseeded = CkksParameters(name="compact", value_range=4.0, phase_seed=7)
    assert Encryptor(reseeded, CONTEXT).encrypt(to_range(aligned, 3.9))


def test_at_least_one_process_is_needed():
    with pytest.raises(ConfigurationError, match="at least 1 process, got 0"):
        Encryptor(parameters("compact"), CONTEXT, processes=0)


def test_a_context_is_bytes():
    with pytest.raises(ConfigurationError, match="expected the context as bytes, got str"):
        Encryptor(parameters("compact"), "run 7")
