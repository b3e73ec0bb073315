import hashlib

import numpy as np
import pytest
from pydantic import ValidationError

from fedsens.crypto import MAP_PARAMETERS, CkksParameters
from fedsens.errors import ConfigurationError

from .kit import NAMES, N, parameters

# Changing a digest breaks every key file and every deployed peer: raise the version with it.
DIGESTS = {
    "compact": "c1e04b10ad8577e7beb4c438c91f079c",
    "balanced": "ec445c1b7b5a4f07b17ac692ba9efac9",
    "precise": "436032a5d9f0244b3eed41ceaee3df68",
}


@pytest.mark.parametrize("name", NAMES)
def test_digest_of_a_preset_is_frozen(name):
    assert parameters(name).digest.hex() == DIGESTS[name]


def test_digest_of_the_map_parameters_is_frozen():
    assert MAP_PARAMETERS.digest.hex() == "9be3d1c450fda1382ee08de952a3c757"


def test_digest_differs_where_anything_differs():
    sets = [
        CkksParameters(name=name, value_range=limit, phase_seed=seed)
        for name in NAMES
        for limit in (4.0, np.nextafter(4.0, 5.0))
        for seed in (0, 1)
    ]
    assert len({each.digest for each in sets}) == len(sets)
    assert CkksParameters.preset("compact", 4.0).digest == parameters("compact").digest


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
def test_error_bound_grows_with_clients_and_range_and_is_far_below_the_range(name):
    bounds = [parameters(name).error_bound(clients) for clients in (1, 2, 10, 100)]
    assert bounds == sorted(bounds)
    wider = CkksParameters.preset(name, 2 * parameters(name).value_range)
    assert wider.error_bound(3) == pytest.approx(2 * parameters(name).error_bound(3))
    assert bounds[-1] < 1e-5 * parameters(name).value_range


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(ConfigurationError, match="compact, balanced, precise, got 'tiny'"):
        CkksParameters.preset("tiny")


@pytest.mark.parametrize(
    "change",
    [
        {"value_range": 0.0},
        {"value_range": float("inf")},
        {"value_range": float("nan")},
        {"phase_seed": -1},
        {"name": "tiny"},
        {"degree": 8192},
    ],
)
def test_impossible_parameters_are_refused(change):
    with pytest.raises(ValidationError):
        CkksParameters(**{"value_range": 4.0} | change)


def test_parameters_are_frozen():
    with pytest.raises(ValidationError):
        parameters("compact").value_range = 8.0
