"""Noise and clipping of the visible update."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsens.errors import LayoutError
from fedsens.remainder._noised import (
    add_noise,
    add_noise_of,
    clip_update,
    fresh_generator,
    update_norm,
    update_rms,
)

DISTRIBUTIONS = ("gaussian", "laplace")


def remainder(seed=0, size=200_000):
    rng = np.random.default_rng(seed)
    before = {
        "weight": rng.normal(0, 1, size).astype(np.float32),
        "wide": rng.normal(0, 1, (4, 5)),
        "steps": np.array(3),
        "none": np.zeros(0, np.float32),
    }
    after = {name: array + array.dtype.type(0.01) for name, array in before.items()}
    after |= {"steps": np.array(7), "none": before["none"]}
    after["weight"][::2] -= np.float32(0.03)
    return before, after


@pytest.mark.parametrize("scale", [0.5, 3.0])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_noise_has_the_stated_standard_deviation_and_shape(distribution, scale):
    before, after = remainder()
    noisy = add_noise(before, after, distribution, scale, np.random.default_rng(1))
    noise = noisy["weight"].astype(np.float64) - after["weight"]
    deviation = scale * update_rms(before, after)
    assert noise.mean() == pytest.approx(0, abs=0.02 * deviation)
    assert noise.std() == pytest.approx(deviation, rel=0.02)
    kurtosis = (noise**4).mean() / noise.var() ** 2
    assert kurtosis == pytest.approx({"gaussian": 3, "laplace": 6}[distribution], rel=0.1)
    assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 0.01
    assert {n: (a.dtype, a.shape) for n, a in noisy.items()} == {
        n: (a.dtype, a.shape) for n, a in after.items()
    }
    assert noisy["steps"] == 7
    assert not np.array_equal(noisy["wide"], after["wide"])


def test_the_scale_is_the_root_mean_square_over_all_visible_floats():
    before, after = remainder()
    floats = ("weight", "wide", "none")
    flat = np.concatenate([(after[n].astype(float) - before[n]).ravel() for n in floats])
    assert update_rms(before, after) == pytest.approx(math.sqrt((flat**2).mean()))
    assert update_norm(before, after, 1) == pytest.approx(np.abs(flat).sum())


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_no_noise_no_change_bit_for_bit(distribution):
    before, after = remainder(size=100)
    rng = np.random.default_rng(0)
    state = rng.bit_generator.state
    for noisy in (
        add_noise(before, after, distribution, 0.0, rng),
        add_noise(after, after, distribution, 5.0, rng),  # nothing to scale by
        clip_update(before, after, update_norm(before, after, 1), distribution),
    ):
        assert {n: a.tobytes() for n, a in noisy.items()} == {
            n: a.tobytes() for n, a in after.items()
        }
    assert rng.bit_generator.state == state


def test_where_nothing_is_visible_there_is_nothing_to_do():
    integers = {"steps": np.array(4), "none": np.zeros(0, np.float32)}
    rng = np.random.default_rng(0)
    assert update_rms(integers, integers) == 0
    assert add_noise(integers, integers, "gaussian", 1.0, rng)["steps"] == 4
    assert add_noise({}, {}, "laplace", 1.0, rng) == {}
    assert clip_update({}, {}, 1.0, "laplace") == {}


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@given(norm=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
def test_a_clipped_update_is_no_longer_than_the_norm_and_keeps_its_direction(
    distribution, norm, seed
):
    before, after = remainder(seed, size=50)
    order = 2 if distribution == "gaussian" else 1
    full = update_norm(before, after, order)
    clipped = clip_update(before, after, norm, distribution)
    assert update_norm(before, clipped, order) <= min(full, norm) * (1 + 1e-3) + 1e-4
    step, whole = clipped["wide"] - before["wide"], after["wide"] - before["wide"]
    assert step == pytest.approx(whole * min(1, norm / full), abs=1e-12)
    assert clipped["steps"] == 7


def test_noise_of_a_given_size_does_not_look_at_the_update():
    _, after = remainder()
    zeros = {name: np.zeros_like(array) for name, array in after.items()}
    first = add_noise_of(zeros, "gaussian", 0.25, np.random.default_rng(2))
    assert first["weight"].std() == pytest.approx(0.25, rel=0.02)


def test_real_noise_cannot_be_repeated():
    draws = {fresh_generator().normal() for _ in range(20)}
    assert len(draws) == 20


def test_remainders_that_do_not_fit_are_an_error_by_name():
    with pytest.raises(LayoutError, match="weight: expected the same shape"):
        update_rms({"weight": np.zeros(2)}, {"weight": np.zeros(3)})
