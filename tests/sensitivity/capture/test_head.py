"""A narrow last layer needs no pass of its own and bounds the rows below it."""

import pytest
import torch
from torch import nn

from fedsens.sensitivity import reference_map, sensitivity_map
from fedsens.sensitivity.capture import _backward as backward
from tests.sensitivity.samples import assert_same, engines


def narrow(classes=9, width=3, bias=True):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, classes, bias)).double()


def batch(classes=9, samples=6):
    torch.manual_seed(1)
    return torch.randn(samples, 5).double(), torch.randint(classes, (samples,))


def passes(monkeypatch, *arguments, **options):
    """How many backward passes the map takes, the checks of the first samples left out."""
    count, real = [], backward.add_rows
    monkeypatch.setattr(
        "fedsens.sensitivity.capture._engine.add_rows",
        lambda sums, outputs, rows, *rest, **options: real(
            sums, outputs, [count.append(1) or row for row in rows], *rest, **options
        ),
    )
    smap = sensitivity_map(*arguments, **options)
    monkeypatch.undo()
    return smap, len(count)


@pytest.mark.parametrize("bias", [True, False])
def test_rows_are_compressed_to_the_width_of_the_last_layer(monkeypatch, bias):
    model = narrow(bias=bias)
    smap, count = passes(monkeypatch, model, [batch()])
    assert count == 3
    assert engines(smap) == {"capture"}
    assert_same(smap, reference_map(model, [batch()], order="label_first"))


@pytest.mark.parametrize(
    ("model", "options", "rows"),
    [
        (narrow(classes=3, width=8), {}, 2),
        (narrow(), {"rows": 2}, 2),
        (narrow(), {"rule": "true_label"}, 1),
        (narrow(), {"loss": "mse"}, 3),
    ],
)
def test_otherwise_the_loss_says_how_many_rows(monkeypatch, model, options, rows):
    x, y = batch(classes=model[2].out_features)
    if options.get("loss") == "mse":
        y = torch.randn(len(x), 9).double()
    smap, count = passes(monkeypatch, model, [(x, y)], **options)
    assert count == rows
    assert_same(smap, sensitivity_map(model, [(x, y)], engine="loop", **options))


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.ReLU()])
def test_a_last_layer_without_full_rank_is_no_obstacle(activation):
    model = narrow()
    model[1] = activation
    with torch.no_grad():
        model[2].weight[:, 1] = model[2].weight[:, 0]
        model[2].weight[:, 2] = 0
    assert_same(
        sensitivity_map(model, [batch()]),
        reference_map(model, [batch()], order="label_first"),
        1e-7,  # the square root of a singular matrix has half of the digits
    )


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("classes", [5, 9])
@pytest.mark.parametrize("bias", [-9.0, -0.5, 9.0])
def test_what_a_relu_stops_takes_no_row(monkeypatch, inplace, classes, bias):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(inplace), nn.Linear(6, classes)).double()
    x, y = batch(classes)
    x[2] = x[4] = 0
    with torch.no_grad():
        model[0].bias.fill_(bias)
        live = (model[:2](x) > 0).sum(1)
    smap, count = passes(monkeypatch, model, [(x, y)])
    assert count == min(int(live.max()), classes - 1) in {-9: [0], -0.5: [2, 3, 4], 9: [4, 6]}[bias]
    assert_same(smap, reference_map(model, [(x, y)], order="label_first"))


class SharedHead(nn.Module):
    """The last layer is used a second time below."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Linear(5, 3), nn.Linear(3, 9)

    def forward(self, x):
        hidden = torch.tanh(self.first(x))
        return self.head(hidden + self.head(hidden)[:, :3])


def test_a_last_layer_that_is_shared_is_not_compressed(monkeypatch):
    model = SharedHead().double()
    smap, count = passes(monkeypatch, model, [batch()])
    assert count == 8
    assert_same(smap, reference_map(model, [batch()], order="label_first"))


class Tagger(nn.Module):
    """A label for every token, by a last layer that is narrower than it has classes."""

    def __init__(self, bias):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Linear(5, 2), nn.Linear(2, 9, bias)

    def forward(self, x):
        return self.head(torch.tanh(self.first(x).cumsum(1)))


@pytest.mark.parametrize("bias", [True, False])
def test_at_several_positions_the_width_counts_for_each(monkeypatch, bias):
    model = Tagger(bias).double()
    x, y = torch.randn(4, 3, 5).double(), torch.randint(9, (4, 3))
    y[0, 1:] = -100
    smap, count = passes(monkeypatch, model, [(x, y)], "token_cross_entropy")
    assert count == 6
    assert engines(smap) == {"capture"}
    exact = reference_map(model, [(x, y)], "token_cross_entropy", order="label_first")
    assert_same(smap, exact, 1e-7)  # a position without a label has a singular matrix


@pytest.mark.parametrize("loss", ["mse", "binary_cross_entropy", "normalized_cross_entropy"])
def test_other_losses_have_the_same_closed_form(monkeypatch, loss):
    model = narrow()
    x, y = batch()[0], torch.rand(6, 9).double() + 0.1
    smap, count = passes(monkeypatch, model, [(x, y)], loss)
    assert count == 3
    assert_same(smap, reference_map(model, [(x, y)], loss, order="label_first"))


class Scaled(torch.autograd.Function):
    """Returns a view, and turns the gradient of each class into another."""

    @staticmethod
    def forward(ctx, z):
        return z.view_as(z)

    @staticmethod
    def backward(ctx, grad):
        return grad * torch.linspace(-1, 2, grad.shape[-1], dtype=grad.dtype)


def hooked(place):
    def change(module, inputs, outputs):
        return tuple(2 * grad for grad in inputs)

    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 9)).double()
    if place == "backward_hook":
        model[2].register_full_backward_hook(change)
    elif place == "pre_hook":
        model[2].register_full_backward_pre_hook(lambda module, outputs: (outputs[0] * 3,))
    elif place == "function":
        model[2].register_forward_hook(lambda module, given, z: Scaled.apply(z))
    else:
        model[2].register_forward_hook(lambda module, given, z: Scaled.apply(z.view(-1, 9)))
    return model


@pytest.mark.parametrize("place", ["backward_hook", "pre_hook", "function", "function_of_a_view"])
def test_what_changes_gradients_behind_the_last_layer_is_no_last_layer(place):
    """A function that returns a view of the last layer's output is not that output."""
    torch.manual_seed(0)
    model, batch = hooked(place), (torch.randn(6, 4).double(), torch.zeros(6).long())
    fast = sensitivity_map(model, [batch])
    assert_same(fast, sensitivity_map(model, [batch], engine="loop"))
