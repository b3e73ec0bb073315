"""SensitivityMap: means, flattening, merging and validation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsens.errors import ConfigurationError, LayoutError, SensitivityError
from fedsens.layout import ParameterLayout
from fedsens.mask import select_mask
from fedsens.sensitivity import SensitivityMap, map_overlap, sensitivity_map, staleness
from tests.sensitivity.samples import assert_same, difference, images, map_of, mini_cnn

META = {"rule": "vector", "loss": "cross_entropy", "center": "model", "norm": "l2", "seed": 0}


def example(count=2, **meta):
    sums = {"a": torch.tensor([2.0, 4.0]), "b": torch.tensor([[6.0]])}
    return SensitivityMap(sums, count, META | meta)


def layout(*extra):
    return ParameterLayout.from_shapes([*extra, ("b", (1, 1), "float32"), ("a", (2,), "float32")])


def test_mean_divides_by_the_count():
    mean = example(count=4).mean()
    assert mean["a"].tolist() == [0.5, 1.0]
    assert mean["b"].tolist() == [[1.5]]


def test_flat_follows_the_layout_and_fills_buffers_with_zero():
    buffers = [("steps", (), "int64"), ("running_mean", (2,), "float32")]
    flat = example().flat(layout(*buffers))
    assert flat.tolist() == [0.0, 0.0, 3.0, 1.0, 2.0]
    assert flat.dtype == np.float32


def test_flat_names_what_does_not_fit():
    with pytest.raises(LayoutError, match="not in the layout of what is shared: b"):
        example().flat(ParameterLayout.from_shapes([("a", (2,), "float32")]))
    wrong = ParameterLayout.from_shapes([("a", (2, 1), "float32"), ("b", (1, 1), "float32")])
    with pytest.raises(LayoutError, match=r"a: expected the layout's shape \[2, 1\], got \[2\]"):
        example().flat(wrong)


def test_flat_of_a_real_model_with_buffers():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    smap = sensitivity_map(model, [(torch.randn(5, 3), torch.randint(4, (5,)))])
    agreed = ParameterLayout.from_state_dict(model.state_dict())
    flat = smap.flat(agreed)
    state = {e.name: torch.from_numpy(flat[e.slice].reshape(e.shape)) for e in agreed.entries}
    for name, value in smap.mean().items():
        torch.testing.assert_close(state[name], value)
    assert not state["1.running_var"].any()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 7), st.sampled_from(["vector", "true_label"]))
def test_merging_is_pooling(cut, rule):
    model, (x, y) = mini_cnn(), images(8)
    pooled = sensitivity_map(model, [(x, y)], rule=rule)
    one = sensitivity_map(model, [(x[:cut], y[:cut])], rule=rule)
    two = sensitivity_map(model, [(x[cut:], y[cut:])], rule=rule)
    assert_same(one.merge(two), pooled)
    assert_same(two.merge(one), pooled)
    if cut != 4:
        halfway = {name: (v + two.mean()[name]) / 2 for name, v in one.mean().items()}
        assert difference(SensitivityMap(halfway, 1), pooled) > 1e-6


def test_merge_keeps_agreeing_metadata():
    merged = example().merge(example(count=3, seed=1))
    assert merged.count == 5
    assert merged.sums["a"].tolist() == [4.0, 8.0]
    assert merged.meta == META | {"seed": "mixed"}


def test_merge_keeps_agreeing_engines_by_parameter():
    mine = example(engines={"a": "capture", "b": "capture"})
    merged = mine.merge(example(engines={"a": "capture", "b": "loop"}))
    assert merged.meta["engines"] == {"a": "capture", "b": "mixed"}


@pytest.mark.parametrize("key", ["rule", "loss", "center", "norm", "tokens"])
def test_maps_of_different_things_do_not_merge(key):
    with pytest.raises(SensitivityError, match=f"same {key}, got .* and 'other'"):
        example().merge(example(**{key: "other"}))


def test_maps_of_different_parameters_do_not_merge():
    other = SensitivityMap({"a": torch.ones(2), "c": torch.ones(1)}, 1, META)
    with pytest.raises(SensitivityError, match="differ in b, c"):
        example().merge(other)
    other = SensitivityMap({"a": torch.ones(3), "b": torch.ones(1, 1)}, 1, META)
    with pytest.raises(SensitivityError, match="differ in a"):
        example().merge(other)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -1.0])
def test_sums_must_be_finite_norms(value):
    with pytest.raises(SensitivityError, match="negative ones in b;"):
        SensitivityMap({"a": torch.ones(1), "b": torch.tensor([1.0, value])}, 1)


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
def test_the_count_must_be_positive(count):
    with pytest.raises(SensitivityError, match="count of at least 1"):
        SensitivityMap({"a": torch.ones(1)}, count)


def test_a_map_needs_parameters_and_does_not_change():
    with pytest.raises(SensitivityError, match="at least one parameter"):
        SensitivityMap({}, 1)
    smap = example()
    with pytest.raises(TypeError):
        smap.sums["a"] = torch.ones(2)
    with pytest.raises(AttributeError):
        smap.count = 3


def test_overlap_by_hand():
    a, b = map_of([9.0, 8.0, 1.0], [[0.0, 7.0]]), map_of([1.0, 9.0, 8.0], [[7.0, 0.0]])
    assert map_overlap(a, b, 0.2) == 0  # {0} and {1}
    assert map_overlap(a, b, 0.4) == 1 / 3  # {0, 1} and {1, 2}
    assert map_overlap(a, b, 0.79) == 1 / 5  # k = 3: {0, 1, 4} and {1, 2, 3}
    assert map_overlap(a, b, 1.0) == 1
    assert staleness(a, b, 0.4) == 1 - 1 / 3


def test_equal_values_are_ranked_by_the_lower_index():
    flat, high = map_of([1.0, 1.0, 1.0, 1.0]), map_of([0.0, 5.0, 0.0, 0.0])
    assert map_overlap(flat, high, 0.25) == 0
    assert map_overlap(flat, high, 0.5) == 1  # both select 0 and 1


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 1), st.integers(1, 7), st.integers(1, 9))
def test_overlap_is_that_of_the_masks(seed, ratio, count, levels):
    rng = np.random.default_rng(seed)
    shapes = {"b": (3, 5), "a": (7,)}
    layout = ParameterLayout.from_shapes((name, s, "float32") for name, s in shapes.items())
    maps = [
        SensitivityMap(
            {n: torch.from_numpy(rng.integers(0, levels, s).astype(np.float32)) for n, s in order},
            count,
        )
        for order in (list(shapes.items()), list(shapes.items())[::-1])
    ]
    one, two = (select_mask(m, layout, ratio=ratio).selected for m in maps)
    expected = np.count_nonzero(one & two) / np.count_nonzero(one | two)
    assert map_overlap(*maps, ratio) == pytest.approx(expected)
    assert map_overlap(maps[0], maps[0], ratio) == 1
    scaled = SensitivityMap({n: 4 * v for n, v in maps[0].sums.items()}, 3)
    assert map_overlap(scaled, maps[1], ratio) == pytest.approx(expected)


def test_maps_of_different_parameters_have_no_overlap():
    with pytest.raises(SensitivityError, match="differ in p0"):
        map_overlap(map_of([1.0, 2.0]), map_of([[1.0, 2.0]]))
    with pytest.raises(SensitivityError, match="differ in p1"):
        map_overlap(map_of([1.0, 2.0]), map_of([1.0, 2.0], [1.0]))


def test_a_ratio_must_select_something():
    with pytest.raises(SensitivityError, match=r"at least 1 of 2 parameters, got 0\.1"):
        map_overlap(map_of([1.0, 2.0]), map_of([1.0, 2.0]), 0.1)
    with pytest.raises(ConfigurationError, match="ratio in"):
        map_overlap(map_of([1.0, 2.0]), map_of([1.0, 2.0]), 1.5)
