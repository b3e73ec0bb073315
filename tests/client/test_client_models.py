from __future__ import annotations

import pytest
import torch

from client.models import _models, build_model, register_model
from fedsens.errors import ConfigurationError

SHAPES = [
    ("digits-cnn", (1, 8, 8)),
    ("digits-cnn", (1, 28, 28)),
    ("digits-cnn", (3, 30, 34)),
    ("lenet5", (1, 12, 12)),
    ("lenet5", (1, 28, 28)),
    ("lenet5", (3, 32, 32)),
    ("resnet18", (3, 32, 32)),
    ("resnet18", (1, 28, 30)),
]


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "shape"), SHAPES)
def test_maps_images_to_logits(name, shape):
    model = build_model(name, shape, 7, seed=0)
    logits = model(torch.rand(2, *shape))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("digits-cnn", (1, 8, 8), 38_282),
        ("digits-cnn", (1, 28, 28), 38_282),
        ("lenet5", (1, 28, 28), 61_706),
        ("lenet5", (3, 32, 32), 62_006),
        ("resnet18", (3, 32, 32), 11_173_962),
    ],
)
def test_parameter_counts_are_those_of_the_literature(name, shape, expected):
    assert parameters(build_model(name, shape, 10, seed=0)) == expected


@pytest.mark.parametrize(
    ("name", "shape"),
    [("digits-cnn", (1, 8, 8)), ("lenet5", (1, 28, 28)), ("resnet18", (3, 8, 8))],
)
def test_weights_depend_on_the_seed_alone(name, shape):
    torch.manual_seed(1)
    one = build_model(name, shape, 10, seed=3).state_dict()
    torch.manual_seed(2)
    same = build_model(name, shape, 10, seed=3).state_dict()
    other = build_model(name, shape, 10, seed=4).state_dict()
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    build_model("digits-cnn", (1, 8, 8), 10, seed=5)
    assert torch.equal(before, torch.get_rng_state())


def test_unknown_name_lists_the_models():
    with pytest.raises(ConfigurationError, match="digits-cnn, lenet5, resnet18, got 'vgg'"):
        build_model("vgg", (1, 8, 8), 10, seed=0)


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [
        ("lenet5", (1, 8, 8), 10),
        ("digits-cnn", (1, 3, 8), 10),
        ("digits-cnn", (0, 8, 8), 10),
        ("digits-cnn", (1, 8, 8), 1),
    ],
)
def test_refuses_images_that_it_cannot_take(name, shape, classes):
    with pytest.raises(ConfigurationError, match=r"expected images of at least .* got .* choose"):
        build_model(name, shape, classes, seed=0)


def test_a_model_is_one_decorated_function(monkeypatch):
    monkeypatch.setattr("client.models._models", dict(_models))

    @register_model("linear")
    def linear(input_shape, classes):
        width = input_shape[0] * input_shape[1] * input_shape[2]
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(width, classes))

    assert build_model("linear", (1, 2, 3), 4, seed=0)(torch.rand(5, 1, 2, 3)).shape == (5, 4)
