"""Whole Jacobians of per-sample gradients equal what people write by hand."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from fedsens.errors import SensitivityError
from fedsens.sensitivity import (
    gradient_jacobian,
    gradient_jvp,
    gradient_vjp,
    layer_sensitivity,
    loss_gradients,
    output_jacobian,
    sample_norms,
    sensitivity_map,
)
from fedsens.sensitivity._layerwise import layer_of
from tests.sensitivity.samples import Applied, Detached, Marked, assert_same, soft_labels

K, C = 3, 4


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, C)).double()


def batch():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(K, 3, generator=generator, dtype=torch.float64)
    return x, torch.randint(C, (K,), generator=generator)


def literal(model, x, y, target):
    """d/dt (dL/dw) element by element, as in the forum answers: one sample."""
    z = model(x)
    t = {"label": y, "input": x, "output": z}[target]
    loss = nn.CrossEntropyLoss()(z, y)
    found = {}
    for name, parameter in model.named_parameters():
        (grad,) = torch.autograd.grad(loss, parameter, create_graph=True)
        rows = [torch.autograd.grad(g, t, retain_graph=True)[0] for g in grad.reshape(-1)]
        found[name] = torch.stack(rows).reshape(*parameter.shape, *t.shape)
    return found


@pytest.mark.parametrize("target", ["label", "input", "output"])
def test_the_jacobian_is_the_literal_one(target):
    model, (x, y) = net(), batch()
    got = dict(gradient_jacobian(model, (x, y), wrt=target))
    for k in range(K):
        hot = nn.functional.one_hot(y[k], C).double().requires_grad_()
        expected = literal(model, x[k].clone().requires_grad_(), hot, target)
        for name, jacobian in expected.items():
            torch.testing.assert_close(got[name][k], jacobian, rtol=1e-10, atol=1e-14)


def test_the_accepted_answer_with_normalised_soft_labels():
    """Second derivatives by a soft label that is divided by its sum inside of the loss."""
    torch.manual_seed(2)
    model = nn.Linear(3, 5).double()
    x, soft = torch.randn(1, 3, dtype=torch.float64), soft_labels(1)
    target = soft[0].clone().requires_grad_()
    loss = nn.CrossEntropyLoss()(model(x)[0], target / target.sum())
    (grad,) = torch.autograd.grad(loss, target, create_graph=True)
    hess_w = torch.stack([torch.autograd.grad(g, model.weight, retain_graph=True)[0] for g in grad])
    got = dict(gradient_jacobian(model, (x, soft), "normalized_cross_entropy"))
    torch.testing.assert_close(got["weight"][0].movedim(-1, 0), hess_w)
    named = sensitivity_map(model, [(x, soft)], "normalized_cross_entropy")
    assert_same(named, sensitivity_map(model, [(x, soft)], center="label", engine="loop"))


@pytest.mark.parametrize("target", ["label", "input", "output"])
def test_products_are_those_of_the_jacobian(target):
    model, data = net(), batch()
    whole = dict(gradient_jacobian(model, data, wrt=target))
    size = {"label": C, "input": 3, "output": C}[target]
    v = torch.randn(K, size, dtype=torch.float64)
    for name, product in gradient_jvp(model, data, v, wrt=target).items():
        expected = torch.einsum("k...j,kj->k...", whole[name], v)
        torch.testing.assert_close(product, expected)
    u = {name: torch.randn_like(p) for name, p in model.named_parameters() if "0." in name}
    total = sum(torch.einsum("kabj,ab->kj", whole[n], w) for n, w in u.items() if w.ndim == 2)
    total += torch.einsum("kaj,a->kj", whole["0.bias"], u["0.bias"])
    torch.testing.assert_close(gradient_vjp(model, data, u, wrt=target), total)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda n, d: gradient_jvp(n, d, torch.randn(2, C)), r"directions of shape \(3, 4\)"),
        (lambda n, d: gradient_jvp(n, d, torch.randn(K, 7)), r"a direction of shape \(4,\)"),
        (lambda n, d: gradient_vjp(n, d, {"0.bias": torch.zeros(4)}), r"0.bias of shape \(5,\)"),
        (lambda n, d: loss_gradients("mse", d[0], d[0][:2]), r"labels of shape \(3, 3\)"),
    ],
)
def test_arguments_of_other_shapes_are_named(call, message):
    with pytest.raises(SensitivityError, match=message):
        call(net(), batch())


def test_norms_of_samples_add_up_to_the_map():
    model, data = net(), batch()
    smap = sensitivity_map(model, [data])
    for name, norms in sample_norms(model, data).items():
        assert norms.shape[0] == K
        torch.testing.assert_close(norms.sum(0), smap.sums[name])
    for name, jacobian in gradient_jacobian(model, data, wrt="input"):
        expected = jacobian.square().sum(-1).sqrt()
        torch.testing.assert_close(sample_norms(model, data, wrt="input")[name], expected)


def test_any_tensor_of_the_batch_is_a_variable():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, C)

        def forward(self, image, attribute):
            return self.layer(image * attribute)

    torch.manual_seed(0)
    model, (x, y) = Two().double(), batch()
    attribute = torch.rand(K, 3, dtype=torch.float64)
    by_key = {"image": x, "attribute": attribute, "label": y}
    named = dict(gradient_jacobian(model, by_key, wrt="attribute"))
    placed = dict(gradient_jacobian(model, (x, attribute, y), wrt=1))
    assert named["layer.weight"].shape == (K, C, 3, 3)
    torch.testing.assert_close(named["layer.weight"], placed["layer.weight"])
    with pytest.raises(SensitivityError, match="'image', 'attribute', got 'colour'"):
        dict(gradient_jacobian(model, by_key, wrt="colour"))
    table = layer_sensitivity(model, [by_key], wrt="attribute")
    assert table.rows[0].frobenius > 0


@pytest.mark.parametrize("labels", ["indices", "soft"])
def test_derivatives_of_the_loss(labels):
    z = torch.randn(K, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 4, 2]) if labels == "indices" else soft_labels(K)
    hot = nn.functional.one_hot(y, 5).double() if labels == "indices" else y
    by_logits, by_label = loss_gradients("cross_entropy", z, y)
    whole = torch.autograd.functional.jacobian(nn.CrossEntropyLoss(reduction="sum"), (z, hot))
    torch.testing.assert_close(by_logits, whole[0])
    torch.testing.assert_close(by_label, whole[1])
    total = hot.sum(-1, keepdim=True)
    normalised, _ = loss_gradients("normalized_cross_entropy", z, y)
    torch.testing.assert_close(normalised, torch.softmax(z, -1) - hot / total)


def test_the_outputs_jacobian_is_that_of_each_sample():
    model, (x, _) = net(), batch()
    got = output_jacobian(model, x)
    whole = torch.autograd.functional.jacobian(model, x)
    torch.testing.assert_close(got, torch.diagonal(whole, dim1=0, dim2=2).permute(2, 0, 1))
    summed = torch.autograd.grad(
        model(x.requires_grad_()), x, torch.ones(K, C, dtype=torch.float64)
    )
    torch.testing.assert_close(got.sum(1), summed[0])


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("target", ["output", "input", "label"])
def test_layers_are_measured_by_matrix_norms(target, scaled):
    model, data = net(), batch()
    table = layer_sensitivity(model, [data], wrt=target, scaled=scaled)
    whole = dict(gradient_jacobian(model, data, wrt=target))
    for row in table.rows:
        names = [name for name in whole if layer_of(name) == row.layer]
        matrices = torch.cat([whole[name].flatten(1, -2) for name in names], 1)
        n, m = matrices.shape[1:]
        assert row.parameters == n
        for norm, order, size in (
            ("frobenius", "fro", (n * m) ** 0.5),
            ("one", 1, n),
            ("infinity", torch.inf, m),
        ):
            mean = float(torch.linalg.matrix_norm(matrices, order).mean())
            assert getattr(row, norm) == pytest.approx(mean / (size if scaled else 1))


def test_the_forums_helper_gives_the_same_norm():
    """Jacobian of the gradients of (outputs ** 2).mean() by the outputs."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    x = torch.randn(2, dtype=torch.float64)
    outputs = model(x)
    grads = torch.autograd.grad((outputs**2).mean(), list(model.parameters()), create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in grads])
    rows = [torch.autograd.grad(entry, outputs, retain_graph=True)[0] for entry in flat]
    zero = torch.zeros(1, 2, dtype=torch.float64)
    got = dict(gradient_jacobian(model, (x[None], zero), "mse", wrt="output"))
    both = torch.cat([got[name][0].flatten(0, -2) for name, _ in model.named_parameters()])
    torch.testing.assert_close(both, torch.stack(rows))


def test_layers_become_scores():
    model, data = net(), batch()
    smap = layer_sensitivity(model, [data]).to_map()
    assert smap.count == K
    assert len({float(v) for v in smap.mean()["0.weight"].reshape(-1)}) == 1
    with pytest.raises(SensitivityError, match="frobenius, one, infinity"):
        layer_sensitivity(model, [data]).to_map("two")


def test_a_later_loss_by_the_weights_of_an_earlier_one():
    """d/dA of a loss after k steps of gradient descent on a loss that A weights."""
    model, (x, y) = net(), batch()
    start = {name: p.detach() for name, p in model.named_parameters()}
    rate, steps = 0.1, 3

    def later_loss(a):
        weights = start
        for _ in range(steps):
            weighted = torch.func.grad(
                lambda w: (
                    a
                    * nn.functional.cross_entropy(functional_call(model, w, x), y, reduction="none")
                ).sum()
            )(weights)
            weights = {name: w - rate * weighted[name] for name, w in weights.items()}
        return nn.functional.cross_entropy(functional_call(model, weights, x), y)

    a = torch.rand(K, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = jacrev(later_loss)(a)
    for k in range(K):
        step = 1e-6 * nn.functional.one_hot(torch.tensor(k), K)
        difference = (later_loss(a + step) - later_loss(a - step)) / 2e-6
        assert float(got[k]) == pytest.approx(float(difference), rel=1e-6)


class Plain(nn.Module):
    def forward(self, x):
        return x.sin()


def ending_with(last):
    model = net()
    model.append(last)
    return model


@pytest.mark.parametrize("target", ["label", "output"])
@pytest.mark.parametrize("function", [Marked, Detached])
def test_a_backward_pass_that_torch_cannot_differentiate_is_no_zero(function, target):
    own, plain, (x, y) = ending_with(Applied(function)), ending_with(Plain()), batch()
    got, expected = (dict(gradient_jacobian(m, (x, y), wrt=target)) for m in (own, plain))
    ones = {name: torch.ones_like(p) for name, p in plain.named_parameters()}
    for name, jacobian in expected.items():
        assert jacobian.abs().max() > 0
        torch.testing.assert_close(got[name], jacobian)
    torch.testing.assert_close(
        gradient_vjp(own, (x, y), ones, wrt=target), gradient_vjp(plain, (x, y), ones, wrt=target)
    )
    for name, norms in sample_norms(plain, (x, y), wrt=target).items():
        torch.testing.assert_close(sample_norms(own, (x, y), wrt=target)[name], norms)


def test_by_the_input_what_is_marked_as_differentiable_once_is_refused():
    own, data = ending_with(Applied(Marked)), batch()
    ones = {name: torch.ones_like(p) for name, p in own.named_parameters()}
    for ask in (
        lambda: dict(gradient_jacobian(own, data, wrt="input")),
        lambda: gradient_jvp(own, data, torch.ones(K, 3).double(), wrt="input"),
        lambda: gradient_vjp(own, data, ones, wrt="input"),
        lambda: sample_norms(own, data, wrt="input"),
        lambda: layer_sensitivity(own, [data], wrt="input"),
    ):
        with pytest.raises(SensitivityError, match="marked once_differentiable"):
            ask()
