"""Central privacy: clipping, shares of noise from a cryptographic source, and their account."""

import math
import sys
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsens.errors import ConfigurationError, ValueRangeError
from fedsens.remainder._central import CHUNK, CentralPrivacy, epsilon_of, gaussian

from .test_noised import remainder


def test_normal_numbers_have_the_moments_and_the_quantiles_of_the_normal_law():
    numbers = gaussian(CHUNK + 1001)
    assert len(numbers) == CHUNK + 1001
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        assert np.mean(numbers**power) == pytest.approx(moment, abs=0.05)
    for level in (0.001, 0.1, 0.5, 0.9, 0.999):
        share = np.mean(numbers < NormalDist().inv_cdf(level))
        assert share == pytest.approx(level, abs=5 * math.sqrt(level * (1 - level) / CHUNK))
    half = len(numbers) // 2
    assert abs(np.corrcoef(numbers[:half], numbers[half : 2 * half])[0, 1]) < 0.01


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_a_few_normal_numbers_are_as_many_as_asked_for(count):
    assert gaussian(count).shape == (count,)


def test_no_seed_repeats_the_noise():
    seen = set()
    for _ in range(3):
        np.random.seed(0)  # which must not matter
        seen.add(tuple(gaussian(2)))
    assert len(seen) == 3


@pytest.mark.parametrize(("clip", "shortened"), [(1.0, True), (1e6, False)])
def test_an_update_is_clipped_whole_and_integers_stay_as_received(clip, shortened):
    before, after = remainder()
    protected = CentralPrivacy(clip=clip, noise=4e-6 / clip, shares=4).protect(before, after)
    moved = [protected[n].astype(float) - before[n] for n in ("weight", "wide")]
    wanted = [after[n].astype(float) - before[n] for n in ("weight", "wide")]
    length = math.sqrt(sum(float((each**2).sum()) for each in wanted))
    assert (length > clip) == shortened
    factor = min(1, clip / length)
    for one, other in zip(moved, wanted, strict=True):
        assert np.allclose(one, factor * other, atol=2e-5)
    assert protected["steps"] == before["steps"]
    assert {n: a.dtype for n, a in protected.items()} == {n: a.dtype for n, a in after.items()}


@pytest.mark.parametrize(
    ("dtype", "weight", "refused"),
    [("float32", 1.5, False), ("float32", 6291456, True), ("float16", 384, True)],
)
@pytest.mark.parametrize("large", ["before", "after"])
def test_a_type_that_rounds_the_noise_away_is_refused(dtype, weight, refused, large):
    small, other = {"w": np.full(3, 0.5, dtype)}, {"w": np.full(3, weight, dtype)}
    before, after = (other, small) if large == "before" else (small, other)
    terms = CentralPrivacy(clip=0.5, noise=1.0, shares=40)
    if not refused:
        terms.protect(before, after)
        return
    with pytest.raises(ValueRangeError, match="rounds away in w"):
        terms.protect(before, after)


def test_the_shares_of_a_sum_make_its_noise():
    before, _ = remainder(size=20_000)
    terms = CentralPrivacy(clip=0.5, noise=3.0, shares=4)
    summed = sum(terms.protect(before, before)["weight"].astype(float) for _ in range(6))
    noise = summed - 6 * before["weight"].astype(float)
    assert np.std(noise) == pytest.approx(0.5 * terms.multiplier(6), rel=0.03)
    assert terms.multiplier(4) == terms.noise


def delta_of(epsilon, multiplier):
    """Balle and Wang 2018, Theorem 8: exactly what a Gaussian mechanism of sensitivity 1 has."""
    law, half = NormalDist(), 1 / (2 * multiplier)
    far = law.cdf(-half - epsilon * multiplier)
    return law.cdf(half - epsilon * multiplier) - math.exp(min(epsilon, 700)) * far


@given(st.lists(st.floats(0.8, 20), min_size=1, max_size=8))
@settings(max_examples=10, deadline=None)
def test_the_account_is_that_of_the_gaussian_mechanism(multipliers):
    whole = math.fsum(m**-2 for m in multipliers) ** -0.5
    epsilon = epsilon_of(multipliers)
    assert delta_of(epsilon, whole) <= 1.001e-5
    assert delta_of(0.99 * epsilon - 2e-3, whole) > 1e-5


def test_nothing_costs_nothing_and_little_noise_much():
    assert epsilon_of([]) == 0
    assert 5000 < epsilon_of([0.0101]) < epsilon_of([0.0099]) < 6000
    assert epsilon_of([1e-6]) > 1e11


def test_a_missing_package_is_named_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting.pld", None)
    with pytest.raises(ConfigurationError, match=r'pip install "fedsens\[privacy\]"'):
        epsilon_of([])
