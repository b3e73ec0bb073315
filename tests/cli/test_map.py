"""fedsens map on the digits, from the command line."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from torch import nn
from typer.testing import CliRunner

from fedsens.cli import app
from fedsens.cli._map import bytes_of, rows_of
from fedsens.data import load_dataset
from fedsens.errors import ConfigurationError
from fedsens.sensitivity import load_map, sensitivity_map
from tests.sensitivity.samples import assert_same

NETS = """
import torch
from torch import nn

def net(width=4, inputs=64):
    torch.manual_seed(0)
    head = nn.Linear(width, 10)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), nn.ReLU(), head)


def lazy():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(10))
"""
runner = CliRunner()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "digit_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield tmp_path
    sys.modules.pop("digit_nets", None)


def invoke(*options, model="digit_nets:net", data="digits"):
    command = ["map", "--model", model, "--data", data, "--out", "map.safetensors"]
    return runner.invoke(app, [*command, *map(str, options)])


def net(width=4):
    torch.manual_seed(0)
    head = nn.Linear(width, 10)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), head)


def test_it_writes_the_map_a_table_a_figure_and_the_figures(folder):
    options = ["--samples", 300, "--figure", "map.png", "--json", "map.json"]
    result = invoke(*options)
    assert result.exit_code == 0, result.output
    smap = load_map(folder / "map.safetensors")
    order = np.random.default_rng(0).permutation(1797)[:300]
    drawn = load_dataset("digits").subset(order)
    assert_same(smap, sensitivity_map(net(), drawn.batches(64), halves=True), 1e-5)
    for text in ("1 Linear", "3 Linear", "260", "50", "310", "300 of 300 samples"):
        assert text in result.output
    assert "overlap of two random halves: " in result.output
    report = json.loads((folder / "map.json").read_text())
    assert report["parameters"] == 310
    assert report["samples"] == report["available"] == 300
    assert report["samples_per_second"] == pytest.approx(300 / report["seconds"])
    assert report["overlap"]["0.1"] == smap.half_overlap(0.1)
    assert [layer["name"] for layer in report["layers"]] == ["1", "3"]
    assert sum(layer["selected"]["0.3"] for layer in report["layers"]) == 93
    assert report["meta"] == dict(smap.meta)
    assert imread(folder / "map.png").ndim == 3


def test_the_options_reach_the_map(folder):
    torch.save(net(6).state_dict(), "w.pt")
    options = {
        "--arg": "width=6",
        "--state-dict": "w.pt",
        "--samples": 40,
        "--batch": 16,
        "--rule": "vector",
        "--rows": 3,
        "--center": "uniform",
        "--seed": 7,
        "--memory": "100MB",
        "--classes": 10,
    }
    result = invoke(*(part for pair in options.items() for part in pair), "--no-halves")
    assert result.exit_code == 0, result.output
    smap = load_map("map.safetensors")
    assert smap.count == 40
    assert smap.halves is None
    assert smap.sums["1.weight"].shape == (6, 64)
    expected = {"rows": 3, "center": "uniform", "seed": 7, "rule": "vector", "norm": "l2"}
    assert {key: smap.meta[key] for key in expected} == expected
    assert "overlap" not in result.output
    result = invoke("--rule", "true_label", "--norm", "l1", "--samples", 9)
    assert load_map("map.safetensors").meta["norm"] == "l1"
    assert load_map("map.safetensors").meta["rule"] == "true_label"


def test_the_weights_are_used(folder):
    trained = net()
    with torch.no_grad():
        trained[3].weight.mul_(5)
    torch.save(trained.state_dict(), "w.pt")
    assert invoke("--samples", 20, "--state-dict", "w.pt").exit_code == 0
    order = np.random.default_rng(0).permutation(1797)[:20]
    batches = load_dataset("digits").subset(order).batches(64)
    assert_same(load_map("map.safetensors"), sensitivity_map(trained, batches, halves=True), 1e-5)


def test_it_stops_when_the_halves_agree(folder):
    result = invoke("--stop-at", 0.6, "--batch", 32, "--json", "map.json")
    assert result.exit_code == 0, result.output
    assert load_map("map.safetensors").count < 1797
    assert "overlap 0.6 at the top 10%: reached" in result.output
    report = json.loads((folder / "map.json").read_text())
    assert report["samples"] < report["available"] == 1797
    assert report["overlap"]["0.1"] >= 0.6
    result = invoke("--stop-at", 1, "--samples", 100)
    assert "overlap 1 at the top 10%: not reached" in result.output
    assert load_map("map.safetensors").count == 100


ERRORS = {
    "import": ({"model": "nowhere:net"}, [], "ConfigurationError: expected an importable module"),
    "function": ({"model": "digit_nets:no"}, [], "ConfigurationError: expected no in the module"),
    "argument": ({}, ["--arg", "depth=2"], "unexpected keyword argument 'depth'"),
    "weights": ({}, ["--arg", "width=5", "--state-dict", "w.pt"], "LayoutError: expected weights"),
    "no-weights": ({}, ["--state-dict", "none.pt"], "ConfigurationError: expected a safetensors"),
    "data": ({"data": "nowhere"}, [], "DataError: expected a data set"),
    "shape": ({}, ["--arg", "inputs=49"], "expected a model that takes images of 1x8x8"),
    "classes": ({}, ["--classes", 5], "DataError: digits: expected labels from 0 to 4"),
    "rows": ({}, ["--rows", "some"], "ConfigurationError: expected --rows auto, exact"),
    "memory": ({}, ["--memory", "much"], "ConfigurationError: expected a number of bytes"),
    "device": ({}, ["--device", "tpu"], "ConfigurationError: expected --device cpu, cuda"),
    "gpu": ({}, ["--device", "cuda:99"], "ConfigurationError: expected a GPU that torch can use"),
    "rule": ({}, ["--rule", "fisher"], "SensitivityError: expected a rule among"),
    "norm": ({}, ["--norm", "l1", "--rows", 2], "SensitivityError: expected norm='l2' with probes"),
    "loss": ({}, ["--loss", "hinge"], "SensitivityError: expected a loss among"),
    "stop": ({}, ["--stop-at", 2], "SensitivityError: expected a target and a ratio"),
    "figure": ({}, ["--figure", "no/map.png"], "ConfigurationError: expected a folder for no/map"),
    "json": ({}, ["--json", "no/map.json"], "ConfigurationError: expected a folder for no/map"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_one_sentence_and_write_nothing(folder, case):
    torch.save(net(4).state_dict(), "w.pt")
    keywords, options, message = ERRORS[case]
    result = invoke(*options, **keywords)
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output
    assert not (folder / "map.safetensors").exists()


def test_without_matplotlib_it_says_how_to_install_it_before_it_starts(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = invoke("--figure", "map.png")
    assert result.exit_code == 1
    assert 'pip install "fedsens[simulation]"' in result.output
    assert not (folder / "map.safetensors").exists()


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_lazy_layers_get_a_map_of_all_of_their_weights(folder):
    result = invoke("--samples", 40, model="digit_nets:lazy")
    assert result.exit_code == 0, result.output
    smap = load_map(folder / "map.safetensors")
    assert all(bool(value.any()) for value in smap.sums.values())
    assert set(smap.meta["engines"].values()) == {"capture"}


def test_what_is_compared_and_how_many_rows_are_options(folder):
    result = invoke("--samples", 40, "--check", "every", "--rows", "auto")
    assert result.exit_code == 0, result.output
    assert load_map(folder / "map.safetensors").meta["rows"] == "exact"
    assert "check='sampled' or 'every'" in invoke("--check", "never").output


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1000", 1000),
        ("1B", 1),
        ("8GiB", 8 * 2**30),
        (" 500 MB ", 500 * 10**6),
        ("1.5KiB", 1536),
        ("2TB", 2 * 10**12),
    ],
)
def test_bytes(text, expected):
    assert bytes_of(text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "0", "0.0MB", "-1", "8gib", "8 G", "1e9", "8GiB more"])
def test_what_is_no_number_of_bytes(text):
    with pytest.raises(ConfigurationError, match="bytes such as 500MB or 8GiB, got"):
        bytes_of(text)


def test_rows():
    assert rows_of("exact") == "exact"
    assert rows_of("12") == 12
    for text in ("0", "-1", "1.5", "all", "", "²"):
        with pytest.raises(ConfigurationError, match="--rows auto, exact or a number of probes"):
            rows_of(text)
