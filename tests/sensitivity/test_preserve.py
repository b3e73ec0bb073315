"""Gradients that exist only inside of ``.backward()`` are refused, not taken for zero."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fedsens.errors import SensitivityError
from fedsens.sensitivity import sensitivity_map


class Net(nn.Module):
    def __init__(self, run):
        super().__init__()
        self.a, self.b, self.run = nn.Linear(4, 5), nn.Linear(5, 3), run

    def forward(self, x):
        return self.b(self.run(self, x))


class Inside(torch.autograd.Function):
    """Runs a layer again in its backward pass, and ``.backward()`` through it."""

    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer, ctx.x = layer, x
        return layer(x).detach()

    @staticmethod
    def backward(ctx, grad):
        with torch.enable_grad():
            ctx.layer(ctx.x.detach()).backward(grad)
        return torch.zeros_like(ctx.x), None


def leaf(x):
    return x.detach().requires_grad_()


BATCH = torch.randn(6, 4), torch.zeros(6).long()


@pytest.mark.parametrize("engine", ["auto", "func", "loop"])
@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda n, x: checkpoint(n.a, leaf(x), use_reentrant=True), "use_reentrant=False"),
        (
            lambda n, x: checkpoint(n.a, x * n.b.bias.sum(), use_reentrant=True),
            "use_reentrant=False",
        ),
        (lambda n, x: Inside.apply(leaf(x), n.a), r"of a.weight, a.bias: a torch.autograd.Func"),
    ],
)
def test_hidden_gradients_are_refused(run, message, engine):
    torch.manual_seed(0)
    net = Net(run)
    before = {name: p.grad for name, p in net.named_parameters()}
    with pytest.raises(SensitivityError, match=message):
        sensitivity_map(net, [BATCH], engine=engine)
    assert {name: p.grad for name, p in net.named_parameters()} == before


class OneWay(torch.autograd.Function):
    """Has a backward pass of at most some samples."""

    @staticmethod
    def forward(ctx, x, most):
        ctx.most = most
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        if len(grad) > ctx.most:
            raise NotImplementedError("no backward pass")
        return grad, None


@pytest.mark.parametrize("engine", ["auto", "func", "loop"])
def test_a_backward_pass_that_does_not_exist_is_named(engine):
    with pytest.raises(SensitivityError, match=r"backward pass of one sample.*NotImplementedError"):
        sensitivity_map(Net(lambda n, x: OneWay.apply(n.a(x), 0)), [BATCH], engine=engine)


def test_a_backward_pass_of_one_sample_only_is_right():
    torch.manual_seed(0)
    smap = sensitivity_map(Net(lambda n, x: OneWay.apply(n.a(x), 1)), [BATCH])
    torch.manual_seed(0)
    plain = sensitivity_map(Net(lambda n, x: n.a(x)), [BATCH])
    assert set(smap.meta["engines"].values()) == {"loop"}
    for name, value in plain.sums.items():
        torch.testing.assert_close(smap.sums[name], value)


def test_checkpoints_that_are_not_reentrant_are_right():
    torch.manual_seed(0)
    net = Net(lambda n, x: checkpoint(n.a, x, use_reentrant=False))
    plain = sensitivity_map(Net(lambda n, x: n.a(x)), [BATCH])
    assert sensitivity_map(net, [BATCH]).sums.keys() == plain.sums.keys()
