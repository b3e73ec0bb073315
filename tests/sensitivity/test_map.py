"""Maps add up, rank, merge, and come back from a file as they were."""

import json
import stat
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from torch import nn

from fedsens._files import write_checked
from fedsens.errors import ConfigurationError, FedSensError, LayoutError, SensitivityError
from fedsens.layout import ParameterLayout
from fedsens.mask import select_mask
from fedsens.sensitivity import (
    SensitivityMap,
    load_map,
    map_overlap,
    save_map,
    sensitivity_map,
    staleness,
)
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


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.b, self.a = nn.Linear(5, 5), nn.Linear(5, 5)
        self.a.weight = self.b.weight

    def forward(self, x):
        return self.a(torch.tanh(self.b(x.flatten(1)[:, :5])))


def same(a, b):
    return (
        list(a.sums) == list(b.sums)
        and all(torch.equal(a.sums[name], b.sums[name]) for name in a.sums)
        and [s.dtype for s in a.sums.values()] == [s.dtype for s in b.sums.values()]
        and (a.count, dict(a.meta)) == (b.count, dict(b.meta))
        and (a.halves is None) == (b.halves is None)
        and all(same(*pair) for pair in zip(a.halves or (), b.halves or (), strict=True))
    )


@pytest.fixture
def path(tmp_path):
    target = tmp_path / "map.safetensors"
    save_map(sensitivity_map(mini_cnn(), [images()], halves=True), target)
    return target


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("model", [mini_cnn, Tied])
def test_a_map_comes_back_whole(tmp_path, model, dtype, halves):
    batches = [images(dtype=dtype)]
    smap = sensitivity_map(model().to(dtype), batches, rows=2, halves=halves)
    save_map(smap, tmp_path / "m")
    assert same(load_map(tmp_path / "m"), smap)


def test_merged_maps_and_odd_shapes_come_back(tmp_path):
    sums = {"z": torch.tensor(1.5), "a": torch.arange(6.0).reshape(2, 3).T, "e": torch.ones(0, 3)}
    one = SensitivityMap(sums, 2, {"seed": 0, "engines": {"a": "capture", "z": "loop"}})
    merged = one.merge(SensitivityMap(sums, 3, {"seed": 1}))
    save_map(merged, tmp_path / "m")
    assert same(load_map(tmp_path / "m"), merged)


def test_only_the_owner_can_read_it_and_no_draft_stays(path):
    path.chmod(0o644)
    save_map(load_map(path), path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_other_tools_can_read_the_sums(path):
    smap, tensors = load_map(path), load_file(path)
    for name, value in smap.sums.items():
        assert np.array_equal(tensors[f"sum.{name}"], value.numpy())


def test_what_json_cannot_hold_is_named_and_writes_nothing(tmp_path):
    for value in (torch.ones(1), float("nan")):
        smap = SensitivityMap({"a": torch.ones(1)}, 1, {"odd": value})
        with pytest.raises(SensitivityError, match="metadata that fit into JSON"):
            save_map(smap, tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_a_missing_file_or_folder_is_named(tmp_path):
    with pytest.raises(SensitivityError, match=r"map in .*nowhere, got FileNotFoundError"):
        load_map(tmp_path / "nowhere")
    with pytest.raises(FedSensError, match="expected to write"):
        save_map(SensitivityMap({"a": torch.ones(1)}, 1), tmp_path / "nowhere" / "m")


@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.9999])
def test_a_truncated_file_is_named(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(SensitivityError, match=r"intact fedsens sensitivity map in .*; restore"):
        load_map(path)


def test_no_bit_can_flip_unseen(path):
    content, before = path.read_bytes(), load_map(path)
    length = 8 + struct.unpack_from("<Q", content)[0]
    for index in [*range(0, length, 3), *range(length, len(content), 97), len(content) - 1]:
        changed = bytearray(content)
        changed[index] ^= 1 << (index % 7)
        path.write_bytes(changed)
        try:
            assert same(load_map(path), before), index  # such as a flipped bit in white space
        except SensitivityError:
            continue


def test_a_file_of_something_else_is_named(tmp_path):
    save_file({"a": np.ones(3)}, tmp_path / "model")
    with pytest.raises(SensitivityError, match=r"intact fedsens sensitivity map in .*KeyError"):
        load_map(tmp_path / "model")
    write_checked(tmp_path / "other", '{"type": "another", "version": 1}', {"a": np.ones(3)})
    with pytest.raises(SensitivityError, match=r"map of version 1 in .*, got 'another'"):
        load_map(tmp_path / "other")


def rewrite(path, change):
    """Change header and tensors of a file and write it with a checksum that is right."""
    with safe_open(path, "numpy") as file:
        header = json.loads(file.metadata()["fedsens"])
    tensors = load_file(path)
    changed = change(header, tensors)
    text = json.dumps(header if changed is None else changed)
    write_checked(path, text, tensors)


def to_int(header, tensors):
    for name, value in tensors.items():
        tensors[name] = np.ceil(value).astype(np.int64)


CHANGES = {
    "negative": (lambda h, t: t["sum.0.bias"].__imul__(-1), "negative ones in 0.bias"),
    "nan": (lambda h, t: t["half.1.0.bias"].__imul__(np.nan), "NaN, infinite or .* 0.bias"),
    "integers": (to_int, "ValueError"),
    "version": (lambda h, t: h.update(version=2), "version 2"),
    "list": (lambda h, t: [1], "TypeError"),
    "text": (lambda h, t: "fedsens", "TypeError"),
    "no-parts": (lambda h, t: h.update(parts=[]), "ValueError"),
    "two-parts": (lambda h, t: h["parts"].pop(), "ValueError"),
    "four-parts": (lambda h, t: h["parts"].append(h["parts"][0]), "ValueError"),
    "count": (lambda h, t: h["parts"][1].update(count=5), "halves of 6 samples together"),
    "count-text": (lambda h, t: h["parts"][0].update(count="6"), "count of at least 1"),
    "meta": (lambda h, t: h["parts"][0].update(meta=3), "TypeError"),
    "missing-tensor": (lambda h, t: t.pop("half.0.0.bias") is None, "KeyError"),
    "more-tensors": (lambda h, t: t.update(more=np.ones(1)), "ValueError"),
    "missing-name": (lambda h, t: h["parameters"].remove("0.bias"), "ValueError"),
    "shape": (
        lambda h, t: t.update({"half.0.0.bias": np.ones(7)}),
        "same parameters; they differ in 0.bias",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_that_is_no_map_is_named(path, name):
    change, message = CHANGES[name]
    rewrite(path, lambda h, t: change(h, t) if name in {"list", "text"} else void(change(h, t)))
    with pytest.raises(SensitivityError, match=message):
        load_map(path)


def void(_):
    return None
