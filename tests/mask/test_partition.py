"""A model is split by tensor without a trace of what is masked, and put together again."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedsens.errors import LayoutError, MaskError
from fedsens.layout import ParameterLayout
from fedsens.mask import (
    EncryptionMask,
    as_layout_types,
    check_plain,
    combine,
    not_finite,
    partition,
    with_nan,
)

from .strategies import models

CHOSEN = (0, 4, 7, 10)  # of the eleven coordinates of model(): two, one and the scalar


def model():
    """Arrays of every kind that a state dict can hold."""
    rng = np.random.default_rng(0)
    return {
        "conv.weight": rng.normal(size=(2, 3)).astype(np.float32),
        "half": rng.normal(size=4).astype(np.float16),
        "wide": rng.normal(size=()),
        "steps": np.array(7),
        "used": np.array([True, False]),
        "empty": np.empty((0, 3), np.float32),
    }


LAYOUT = ParameterLayout.from_state_dict(model())


def mask_of(layout, *chosen):
    selected = np.zeros(layout.size, bool)
    selected[list(chosen)] = True
    return EncryptionMask(selected, layout.digest)


def same(one, other):
    assert list(one) == list(other)
    for name in one:
        assert (one[name].dtype, one[name].shape) == (other[name].dtype, other[name].shape), name
        assert one[name].tobytes() == other[name].tobytes(), name


@given(models())
def test_combine_undoes_partition(drawn):
    arrays, layout, mask = drawn
    plain, masked = partition(arrays, mask, layout)
    same(combine(plain, masked, layout, mask), arrays)


@given(models())
def test_the_parts_hold_each_coordinate_once_and_fit_the_mask(drawn):
    arrays, layout, mask = drawn
    plain, masked = partition(arrays, mask, layout)
    assert masked.shape == (mask.k,)
    assert masked.dtype == layout.dtype
    assert sum(plain[entry.name].size for entry in layout.entries) == layout.size - mask.k
    check_plain(plain, layout, mask)


@given(models())
def test_the_walk_by_tensor_is_the_flat_partition(drawn):
    arrays, layout, mask = drawn
    plain, masked = partition(arrays, mask, layout)
    flat_masked, rest = mask.partition(layout.flatten(arrays))
    visible = [plain[entry.name].ravel().astype(layout.dtype) for entry in layout.entries]
    assert masked.tobytes() == flat_masked.tobytes()
    assert np.concatenate([*visible, np.empty(0, layout.dtype)]).tobytes() == rest.tobytes()


def test_masked_values_are_absent_from_the_plaintext_part():
    arrays = model()
    plain, masked = partition(arrays, mask_of(LAYOUT, *CHOSEN), LAYOUT)
    for value in masked:
        assert not any((array == value).any() for array in plain.values())
    assert plain["conv.weight"].tolist() == arrays["conv.weight"].reshape(-1)[[1, 2, 3, 5]].tolist()
    assert plain["wide"].shape == (0,)
    assert plain["empty"].shape == (0, 3)


def test_a_mask_of_another_model_is_refused():
    with pytest.raises(MaskError, match="wide, which ends at 11"):
        partition(model(), EncryptionMask(np.ones(10, bool), LAYOUT.digest), LAYOUT)


def test_the_server_sees_nan_at_masked_coordinates_and_the_rest_as_it_is():
    arrays, mask = model(), mask_of(LAYOUT, *CHOSEN)
    visible = with_nan(partition(arrays, mask, LAYOUT)[0], LAYOUT, mask)
    flat, true = LAYOUT.flatten(visible), LAYOUT.flatten(arrays)
    assert np.flatnonzero(np.isnan(flat)).tolist() == list(CHOSEN)
    assert np.array_equal(flat[~np.isnan(flat)], np.delete(true, CHOSEN))
    assert visible["steps"] == arrays["steps"]
    assert not_finite(visible) == ["conv.weight", "half", "wide"]
    assert not_finite(arrays) == []


@pytest.mark.parametrize("chosen", [(), (0, 2), (0, 1, 2, 3)])
def test_bfloat16_is_held_by_float32_and_comes_back_bit_for_bit(chosen):
    state = {"head": torch.randn(2, 2).bfloat16(), "steps": torch.tensor(3)}
    layout = ParameterLayout.from_state_dict(state)
    mask = mask_of(layout, *chosen)
    arrays = {"head": state["head"].float().numpy(), "steps": state["steps"].numpy()}
    plain, masked = partition(arrays, mask, layout)
    opened = as_layout_types(combine(plain, masked, layout, mask), layout)
    assert opened["head"].dtype == np.float32
    assert torch.equal(torch.from_numpy(opened["head"]).bfloat16(), state["head"])


def test_every_problem_of_a_plaintext_part_is_listed():
    mask = mask_of(LAYOUT, *CHOSEN)
    plain, _ = partition(model(), mask, LAYOUT)
    plain["conv.weight"] = np.zeros(6, np.float32)
    plain["steps"] = np.zeros(2)
    plain["added"] = plain.pop("half")
    with pytest.raises(LayoutError) as caught:
        check_plain(plain, LAYOUT, mask)
    for problem in (
        "half is missing",
        "added is unexpected",
        "conv.weight: expected shape [4], got [6]",
        "steps: expected shape [], got [2]",
    ):
        assert problem in str(caught.value)
    assert "wide" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int16", "int32", "int64"])
@given(data=st.data(), clients=st.integers(1, 40))
def test_a_mean_of_equal_integers_is_that_integer(dtype, data, clients):
    """As Flower's FedAvg makes it: each array times its share of the examples, then the sum."""
    high = 2**20 if dtype in {"int32", "int64"} else 100
    elements = st.booleans() if dtype == "bool" else st.integers(0, high)
    array = data.draw(hnp.arrays(dtype, 6, elements=elements))
    examples = data.draw(st.lists(st.integers(1, 10**5), min_size=clients, max_size=clients))
    mean = sum(array * (count / sum(examples)) for count in examples)
    layout = ParameterLayout.from_state_dict({"position_ids": array})
    same(as_layout_types({"position_ids": mean}, layout), {"position_ids": array})


def test_integers_are_rounded_half_to_even_and_floats_are_not():
    layout = ParameterLayout.from_shapes([("n", (4,), "int64"), ("x", (2,), "float32")])
    arrays = {"n": np.array([0.49, 1.51, 2.5, -0.9999]), "x": np.array([0.49, 1.51])}
    typed = as_layout_types(arrays, layout)
    assert typed["n"].tolist() == [0, 2, 2, -1]
    assert typed["x"].tolist() == np.array([0.49, 1.51], np.float32).tolist()


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", "float32", "float64"])
@pytest.mark.parametrize("kind", ["float64", "float32", "int64"])
@pytest.mark.parametrize("axes", [(), (1,), (0,)])
def test_what_has_no_axes_stays_an_array(dtype, kind, axes):
    """BatchNorm's num_batches_tracked and learned temperatures, also where a mean is a scalar."""
    layout = ParameterLayout.from_shapes([("tracked", axes, dtype)])
    for mean in (np.ones(axes, kind), np.ones(axes, kind) * 1.0):
        typed = as_layout_types({"tracked": mean}, layout)["tracked"]
        assert type(typed) is np.ndarray
        assert (typed.shape, typed.dtype) == (axes, dtype)
        torch.from_numpy(typed)


@given(models())
def test_what_has_its_type_is_the_same_array(drawn):
    arrays, layout, _ = drawn
    typed = as_layout_types(arrays, layout)
    assert list(typed) == list(arrays)
    assert all(typed[name] is arrays[name] for name in arrays)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("int64", np.nan),
        ("int32", np.inf),
        ("int8", 128.0),
        ("uint8", -1.0),
        ("bool", 1.51),
        ("int64", 2.0**63),
        ("uint8", 256),
    ],
)
def test_numbers_that_a_type_does_not_have_are_an_error_by_name(dtype, value):
    layout = ParameterLayout.from_shapes([("ok", (), "int64"), ("steps", (1,), dtype)])
    with pytest.raises(LayoutError, match=rf"out of range in steps \({dtype}\)"):
        as_layout_types({"ok": np.array(0.9), "steps": np.array([value])}, layout)


@pytest.mark.parametrize(("dtype", "value"), [("int8", 127.4), ("uint8", 255.0), ("bool", 0.99)])
def test_the_last_numbers_of_a_type_fit(dtype, value):
    layout = ParameterLayout.from_shapes([("n", (1,), dtype), ("none", (0,), dtype)])
    typed = as_layout_types({"n": np.array([value]), "none": np.zeros(0)}, layout)
    assert typed["n"].tolist() == [round(value)]
    assert typed["none"].dtype == dtype
