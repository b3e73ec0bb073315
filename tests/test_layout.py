import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsens.errors import LayoutError
from fedsens.layout import ParameterLayout

TYPES = ("float16", "bfloat16", "float32", "float64", "int64", "bool")
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@st.composite
def states(draw, types=TYPES):
    """State dicts of mixed types: scalars, empty tensors and integer buffers among them."""
    state = {}
    for i, dtype in enumerate(draw(st.lists(st.sampled_from(types), max_size=6))):
        generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
        values = 100 * torch.randn(draw(shapes), generator=generator, dtype=torch.float64)
        state[f"layer{i}.weight"] = values.to(getattr(torch, dtype))
    return state


def assert_same(one, other):
    assert list(one) == list(other)
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype
        assert tensor.shape == other[name].shape
        assert torch.equal(tensor, other[name])


def pieces(layout, flat):
    """The tensors of a flat vector, each by its slice."""
    return {e.name: torch.from_numpy(flat[e.slice].reshape(e.shape)) for e in layout.entries}


@given(states())
def test_the_flat_vector_holds_every_floating_tensor_at_its_place(state):
    layout = ParameterLayout.from_state_dict(state)
    floating = {name: t for name, t in state.items() if t.is_floating_point()}
    flat = layout.flatten(state)
    assert flat.shape == (len(layout),) == (layout.size,)
    found = pieces(layout, flat)
    assert_same({name: found[name].to(t.dtype) for name, t in floating.items()}, floating)
    assert list(found) == list(floating)


@given(states())
def test_json_round_trip(state):
    layout = ParameterLayout.from_state_dict(state)
    back = ParameterLayout.from_json(layout.to_json())
    assert back == layout
    assert back.digest == layout.digest


@given(states(types=("float16", "float32", "float64", "int64", "bool")))
def test_numpy_mappings_are_the_same_model(state):
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    layout = ParameterLayout.from_state_dict(state)
    assert ParameterLayout.from_state_dict(arrays) == layout
    assert np.array_equal(layout.flatten(arrays), layout.flatten(state))


@given(states())
def test_name_of_agrees_with_the_slices(state):
    layout = ParameterLayout.from_state_dict(state)
    owners = [entry.name for entry in layout.entries for _ in range(entry.size)]
    assert [layout.name_of(i) for i in range(layout.size)] == owners
    for outside in (-1, layout.size):
        with pytest.raises(LayoutError, match="expected a coordinate below"):
            layout.name_of(outside)


def test_batch_norm_model():
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    layout = ParameterLayout.from_state_dict(model.state_dict())
    assert layout.size == 18 + 2 + 2 + 2 + 2 + 2
    assert layout.tensors[-1].offset is None
    with pytest.raises(LayoutError, match=r"num_batches_tracked .* no place"):
        _ = layout.tensors[-1].slice


def test_the_flat_vector_shares_no_memory():
    state = {"w": torch.zeros(2)}
    layout = ParameterLayout.from_state_dict(state)
    layout.flatten(state)[:] = 1
    assert not state["w"].any()


def test_parameters_that_need_gradients_and_strides():
    state = {"w": torch.nn.Parameter(torch.arange(6.0).reshape(2, 3)).T}
    layout = ParameterLayout.from_state_dict(state)
    assert layout.flatten(state).tolist() == [0, 3, 1, 4, 2, 5]


@pytest.mark.parametrize(
    ("types", "dtype"),
    [([], np.float32), (["float16", "bfloat16"], np.float32), (["float32", "float64"], np.float64)],
)
def test_vector_type_holds_every_tensor(types, dtype):
    layout = ParameterLayout.from_shapes((str(i), (1,), t) for i, t in enumerate(types))
    assert layout.dtype is dtype


def test_empty_layout():
    layout = ParameterLayout.from_state_dict({})
    assert (layout.size, layout.entries, layout.to_json()) == (0, (), "[]")
    assert layout.flatten({}).size == 0


BASE = [("a", (2, 3), "float32"), ("b", (6,), "float32")]


@pytest.mark.parametrize(
    "other",
    [
        BASE[::-1],
        BASE[:1],
        [("a", (3, 2), "float32"), BASE[1]],
        [("a", (2, 3), "float16"), BASE[1]],
        [("A", (2, 3), "float32"), BASE[1]],
        [*BASE, ("c", (0,), "float32")],
        [*BASE, ("c", (), "int64")],
    ],
)
def test_digest_depends_on_everything(other):
    layout = ParameterLayout.from_shapes(BASE)
    assert layout.digest != ParameterLayout.from_shapes(other).digest
    assert layout.digest == ParameterLayout.from_shapes(list(BASE)).digest


def test_check_lists_every_problem():
    state = {name: torch.zeros(2) for name in "abcd"}
    layout = ParameterLayout.from_state_dict(state)
    layout.check(dict(reversed(state.items())))
    other = {
        "b": torch.zeros(3),
        "c": torch.zeros(2, dtype=torch.complex64),
        "d": "not a tensor",
        "e": torch.zeros(2),
    }
    for use in (layout.check, layout.flatten):
        with pytest.raises(LayoutError) as caught:
            use(other)
        assert str(caught.value) == (
            "the model does not have the agreed layout: a is missing; e is unexpected; "
            "b: expected float32[2], got float32[3]; c: expected float32[2], got complex64[2]; "
            "d: expected float32[2], got str[]"
        )


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(2).to(torch.float8_e5m2),
        torch.zeros(2).to(torch.float8_e4m3fn),
        np.zeros(2, ">f4"),
        np.zeros(2, "U3"),
        {"extra": "state"},
    ],
)
def test_types_that_nothing_would_encrypt_are_refused(value):
    with pytest.raises(LayoutError, match="w: expected a type among bfloat16"):
        ParameterLayout.from_state_dict({"w": value})


@pytest.mark.parametrize(
    "triple",
    [
        ("a", (-1,), "float32"),
        ("a", (1.0,), "float32"),
        ("a", (True,), "float32"),
        (1, (1,), "float32"),
        ("a", ("1",), "float32"),
    ],
)
def test_malformed_triples_are_refused(triple):
    with pytest.raises(LayoutError, match="expected"):
        ParameterLayout.from_shapes([triple])


def test_names_are_unique():
    with pytest.raises(LayoutError, match="occurs twice"):
        ParameterLayout.from_shapes(BASE[:1] * 2)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "5",
        "{}",
        '""',
        "null",
        "[5]",
        '[["a",[1]]]',
        '[["a",1,"float32"]]',
        '[["a",[1],[]]]',
        '[["a",[1],"float33"]]',
        '[["a",[true],"float32"]]',
        '[["a",[1e0],"float32"]]',
        "[" * 100_000,
    ],
)
def test_malformed_json_is_refused(text):
    with pytest.raises(LayoutError):
        ParameterLayout.from_json(text)


@pytest.mark.parametrize(
    "text",
    [
        '[["a",[1099511627777],"float32"]]',
        '[["a",[1099511627776,2],"float32"]]',
        '[["a",[0,1099511627776,2],"float32"]]',
        f'[["a",{[1] * 65},"float32"]]',
        f'[["a",[{"9" * 4000}],"float32"]]',
        '[["a\\nb",[1],"float32"]]',
        '[["\\ud800",[1],"float32"]]',
    ],
)
def test_a_layout_of_no_possible_model_is_refused(text):
    with pytest.raises(LayoutError, match="printable name, at most 64 dimensions") as caught:
        ParameterLayout.from_json(text)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)
