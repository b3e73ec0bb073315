"""Files of maps: whole and exact, private, and never read wrongly."""

import json
import stat
import struct

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from torch import nn

from fedsens.errors import FedSensError, SensitivityError
from fedsens.files import write_checked
from fedsens.sensitivity import SensitivityMap, load_map, save_map, sensitivity_map
from tests.sensitivity.samples import images, mini_cnn


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
