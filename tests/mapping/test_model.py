"""Models from an importable function, and their weights from a file."""

import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fedsens.errors import ConfigurationError, LayoutError
from fedsens.mapping._model import build_model, load_weights, parsed_arguments

SOURCE = """
from torch import nn

def net(width, classes=3, bias=True):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, classes, bias=bias))

class Net(nn.Linear):
    def __init__(self):
        super().__init__(2, 2)

class Nested:
    ready = Net()

ready, number, text = Net(), 3, lambda: "text"
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current folder with a module that is nowhere else."""
    (tmp_path / "my_nets.py").write_text(SOURCE)
    (tmp_path / "my_broken.py").write_text("import not_installed_anywhere")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield tmp_path
    for name in ("my_nets", "my_broken"):
        sys.modules.pop(name, None)


def test_a_function_of_the_current_folder(folder):
    model = build_model("my_nets:net", ["width=5", "classes=4", "bias=False"])
    assert [tuple(p.shape) for p in model.parameters()] == [(5, 64), (5,), (4, 5)]


@pytest.mark.parametrize("path", ["my_nets:Net", "my_nets:ready", "my_nets:Nested.ready"])
def test_a_class_or_a_model(folder, path):
    assert isinstance(build_model(path), nn.Linear)


def test_arguments_are_literals_or_text():
    given = ["a=1", "b=1,8,8", "c=relu", "d=None", "e=x=y", "f=", "g=[1, 2]", "h=1e-3"]
    expected = {"a": 1, "b": (1, 8, 8), "c": "relu", "d": None, "e": "x=y", "f": "", "g": [1, 2]}
    assert parsed_arguments(given) == expected | {"h": 1e-3}


PATHS = {
    "no-colon": ("my_nets", [], "MODULE:FUNCTION, got 'my_nets'"),
    "no-function": ("my_nets:", [], "MODULE:FUNCTION"),
    "no-module": ("nowhere.nets:net", [], "importable module nowhere.nets, got: No module named"),
    "broken": ("my_broken:net", [], "got: No module named 'not_installed_anywhere'"),
    "unknown": ("my_nets:resnet", [], "expected resnet in the module my_nets, got no resnet"),
    "nested": ("my_nets:Nested.late", [], "got no late there"),
    "number": ("my_nets:number", [], "function that returns a model as my_nets:number, got int"),
    "ready": ("my_nets:ready", ["a=1"], "got Net; name a function, a class, or a model without"),
    "missing": ("my_nets:net", [], "got missing a required argument: 'width'"),
    "unexpected": ("my_nets:net", ["width=2", "depth=3"], "unexpected keyword argument 'depth'"),
    "text": ("my_nets:text", [], "expected a torch.nn.Module from my_nets:text, got str"),
    "no-value": ("my_nets:net", ["width"], "KEY=VALUE after --arg, got width"),
    "no-key": ("my_nets:net", ["=3", "1a=2"], "KEY=VALUE after --arg, got =3, 1a=2"),
}


@pytest.mark.parametrize("case", PATHS)
def test_what_is_no_model_is_named(folder, case):
    path, arguments, message = PATHS[case]
    with pytest.raises(ConfigurationError, match=message):
        build_model(path, arguments)


def linear(inputs=3):
    torch.manual_seed(inputs)
    return nn.Sequential(nn.Linear(inputs, 2), nn.BatchNorm1d(2))


@pytest.mark.parametrize("kind", ["safetensors", "torch", "checkpoint"])
def test_weights_of_every_kind_of_file(tmp_path, kind):
    source, target = linear(), linear()
    with torch.no_grad():
        source[0].weight.fill_(7)
    state, path = source.state_dict(), tmp_path / "w.pt"
    if kind == "safetensors":
        path = tmp_path / "w.safetensors"
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if kind == "checkpoint" else state, path)
    load_weights(target, path)
    assert torch.equal(target[0].weight, source[0].weight)


def test_every_difference_of_the_weights_is_listed(tmp_path):
    state = linear(4).state_dict()
    state["extra"] = state.pop("1.bias")
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(LayoutError) as caught:
        load_weights(linear(3), tmp_path / "w.pt")
    for problem in ("Missing key", '"1.bias"', '"extra"', "size mismatch for 0.weight", "[2, 4]"):
        assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


class Payload:
    def __reduce__(self):
        return (print, ("run",))


FILES = {
    "missing": (lambda path: None, "got: .*No such file"),
    "empty": (lambda path: path.write_bytes(b""), "expected a safetensors or torch file"),
    "text": (lambda path: path.write_text("weights"), "expected a safetensors or torch file"),
    "code": (lambda path: torch.save({"w": Payload()}, path), "expected a safetensors or torch"),
    "module": (lambda path: torch.save(nn.Linear(1, 1), path), "expected a safetensors or torch"),
    "list": (lambda path: torch.save([torch.ones(1)], path), "state dict of tensors .* got list"),
    "numbers": (lambda path: torch.save({"w": 3}, path), "state dict of tensors .* got dict"),
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("case", FILES)
def test_a_file_without_weights_is_named_and_runs_no_code(tmp_path, capsys, case, suffix):
    write, message = FILES[case]
    path = tmp_path / f"w{suffix}"
    write(path)
    if suffix == ".safetensors":
        message = "expected a safetensors or torch file of tensors in .*w.safetensors, got: .+"
    with pytest.raises(ConfigurationError, match=message):
        load_weights(nn.Linear(1, 1), path)
    assert not capsys.readouterr().out


def test_a_function_that_raises_is_one_sentence():
    path, arguments = "torch.nn:Linear", ["in_features=2", "out_features=-1"]
    with pytest.raises(
        ConfigurationError, match=r"Linear to make a model, got \w+: .*--arg"
    ) as told:
        build_model(path, arguments)
    assert told.value.__cause__ is not None
