"""Rules are added with one function, and wrong ones are found out."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from fedsens.sensitivity import reference_map, sensitivity_map
from fedsens.sensitivity.capture import Cotangent
from fedsens.sensitivity.capture import _registry as registry
from fedsens.sensitivity.capture._registry import register_op
from tests.sensitivity.samples import assert_same


@pytest.fixture(autouse=True)
def rules():
    before = dict(registry.OPS)
    yield
    registry.OPS.clear()
    registry.OPS.update(before)


class Sloped(nn.Module):
    """A parameter in an operation that has no rule."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.shift = nn.Linear(4, 3), nn.Parameter(torch.rand(3))

    def forward(self, x):
        return torch.hypot(self.layer(x), self.shift)


def made(model):
    torch.manual_seed(1)
    batches = [(torch.randn(5, 4).double(), torch.randint(3, (5,)))]
    return sensitivity_map(model, batches), reference_map(model, batches, order="label_first")


def test_without_a_rule_another_engine_serves_the_parameter():
    fast, exact = made(Sloped().double())
    assert fast.meta["engines"]["shift"] != "capture" == fast.meta["engines"]["layer.weight"]
    assert_same(fast, exact)


def test_a_rule_is_one_function():
    @register_op(torch.hypot)
    def hypot(cotangent: Cotangent, input, other):
        root = torch.hypot(cotangent.samples(input), other)
        return {"other": (cotangent.value * other / root).flatten(1, -2).sum(1)}

    fast, exact = made(Sloped().double())
    assert fast.meta["engines"]["shift"] == "capture"
    assert_same(fast, exact)


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (lambda d: {"other": 1.01 * d.sum((1, 2))[:, None]}, None),
        (lambda d: {"input": d}, None),
        (lambda d: {"other": d.sum()}, None),
        (lambda d: {"other": d.unknown}, "the rule of hypot raised AttributeError"),
    ],
    ids=["wrong", "missing", "shape", "raises"],
)
def test_a_wrong_rule_is_found_out(returned, told):
    @register_op(torch.hypot)
    def hypot(cotangent: Cotangent, input, other):
        return returned(cotangent.value)

    with pytest.warns(UserWarning, match=told) if told else nullcontext():
        fast, exact = made(Sloped().double())
    assert fast.meta["engines"]["shift"] != "capture" == fast.meta["engines"]["layer.bias"]
    assert_same(fast, exact)


class Mixing(nn.Module):
    """Samples are centred on their batch: no sample has a gradient of its own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        hidden = self.layer(x)
        return self.head(torch.tanh(hidden - hidden.mean(0, keepdim=True) * (len(x) > 1)))


def test_mixed_samples_are_measured_alone():
    fast, exact = made(Mixing().double())
    assert "capture" not in fast.meta["engines"].values()
    assert_same(fast, exact)
