import math
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedsens.mask
from fedsens.errors import ConfigurationError, MaskError
from fedsens.layout import ParameterLayout
from fedsens.mask import mask_count, select_mask
from fedsens.mask._policies import policy_names

from .strategies import ratios

LAYOUT = ParameterLayout.from_shapes([
    ("a.weight", (3,), "float32"),
    ("a.steps", (), "int64"),
    ("b.weight", (2, 2), "float32"),
])
ONES = np.ones(7)


@given(st.decimals(0, 1, places=6), st.integers(0, 10**9))
def test_count_is_the_floor_of_the_decimal_product(ratio, size):
    assert mask_count(float(ratio), size) == math.floor(ratio * size)


@given(st.integers(1, 10**9), st.data())
def test_a_ratio_of_counts_gives_the_count_back(size, data):
    k = data.draw(st.integers(0, size))
    assert mask_count(k / size, size) == k


@given(ratios, st.integers(0, 10**12))
def test_count_stays_in_range(ratio, size):
    assert 0 <= mask_count(ratio, size) <= size


@pytest.mark.parametrize(
    ("ratio", "size", "k"),
    [
        (0.29, 100, 29),
        (0.1, 9, 0),
        (0.57, 100, 57),
        (0.0, 5, 0),
        (1, 5, 5),
        (0.1, 0, 0),
        (0.999, 10, 9),
    ],
)
def test_count_by_hand(ratio, size, k):
    assert mask_count(ratio, size) == k
    assert math.floor(Decimal(str(ratio)) * size) == k


@pytest.mark.parametrize("ratio", [-0.1, 1.0000001, math.nan, math.inf])
def test_ratio_must_be_a_share(ratio):
    with pytest.raises(ConfigurationError, match=r"expected a ratio in \[0, 1\]"):
        select_mask(ONES, LAYOUT, ratio=ratio)


def test_seed_must_not_be_negative():
    with pytest.raises(ConfigurationError, match="seed of at least 0, got -1"):
        select_mask(None, LAYOUT, "random", seed=-1)


def test_maps_are_laid_out_by_themselves():
    class Map:
        def flat(self, layout):
            assert layout is LAYOUT
            return np.arange(7, dtype=np.float32)

    assert select_mask(Map(), LAYOUT, ratio=0.3) == select_mask(np.arange(7.0), LAYOUT, ratio=0.3)


@pytest.mark.parametrize(
    ("index", "value", "problem"),
    [
        (1, np.nan, r"finite scores, got NaN or infinity in a\.weight"),
        (3, np.inf, r"finite scores, got NaN or infinity in b\.weight"),
        (6, -np.inf, r"finite scores, got NaN or infinity in b\.weight"),
        (6, -1e-300, r"at least 0, got a negative one in b\.weight"),
    ],
)
@pytest.mark.parametrize("policy", ["sensitivity", "gradient", "layerwise"])
def test_scores_must_be_finite_and_not_negative(policy, index, value, problem):
    scores = np.ones(7)
    scores[index] = value
    with pytest.raises(MaskError, match=problem):
        select_mask(scores, LAYOUT, policy)


@pytest.mark.parametrize(
    "scores",
    [np.ones(6), np.ones(8), np.ones((7, 1)), np.float64(1), np.ones(7, int), np.ones(7, complex)],
)
def test_scores_must_be_a_vector_of_the_layout(scores):
    with pytest.raises(MaskError, match="vector of 7 floating-point scores"):
        select_mask(np.asarray(scores), LAYOUT)


def test_weights_are_checked_too():
    with pytest.raises(MaskError, match="vector of 7 floating-point weights"):
        select_mask(None, LAYOUT, "magnitude", weights=np.ones(3))
    with pytest.raises(MaskError, match=r"finite weights, got NaN or infinity in a\.weight"):
        select_mask(None, LAYOUT, "magnitude", weights=ONES * np.nan)


def test_errors_hold_no_score():
    with pytest.raises(MaskError) as caught:
        select_mask(-0.123456 * ONES, LAYOUT)
    assert "123456" not in str(caught.value)


@pytest.mark.parametrize("policy", policy_names())
def test_an_empty_layout_has_an_empty_mask(policy):
    empty = ParameterLayout.from_shapes([("steps", (), "int64")])
    mask = select_mask(np.empty(0), empty, policy, weights=np.empty(0))
    assert (mask.k, mask.size) == (0, 0)


def test_exports_are_sorted_and_complete():
    names = fedsens.mask.__all__
    assert names == sorted(names)
    assert all(hasattr(fedsens.mask, name) for name in names)
