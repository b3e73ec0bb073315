"""Two backward passes give what the second derivative gives; cosines give back the image."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import log_softmax

from fedsens.audit._distance import GradientDistance
from fedsens.audit._matching import total_variation
from fedsens.audit._spectrum import gradient_by_coefficients, image_of, random_coefficients

from .models import study


def guess(view, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand((view.batch, *view.shape), generator=generator).double()
    return images, torch.randn((view.batch, view.classes), generator=generator).double()


def by_double_backward(view, distance, naive, images, logits):
    model = view.model.double()
    images.requires_grad_()
    logits.requires_grad_()
    loss = -(logits.softmax(1) * log_softmax(model(images), 1)).sum(1).mean()
    made = torch.autograd.grad(loss, view.parameters, create_graph=True)
    made = torch.cat([gradient.flatten() for gradient in made])
    seen = torch.cat([gradient.flatten() for gradient in view.gradients.values()]).double()
    known = torch.ones_like(seen, dtype=torch.bool) if naive else ~seen.isnan()
    made, seen = made[known], seen.nan_to_num()[known]
    if distance == "euclidean":
        away = (made - seen).square().sum() / seen.square().sum()
    else:
        away = 1 - (made @ seen) / (made.norm() * seen.norm())
    return away.item(), *torch.autograd.grad(away, [images, logits])


@pytest.mark.parametrize("naive", [False, True])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("model", ["lenet", "perceptron"])
def test_distance_and_derivatives_are_those_of_double_backward(model, distance, naive):
    view = study(model).view("random", 0.3, 0)
    found = GradientDistance(view, distance, naive)(*guess(view))
    expected = by_double_backward(view, distance, naive, *guess(view))
    assert found[0] == pytest.approx(expected[0], rel=1e-9)
    for mine, theirs in zip(found[1:], expected[1:], strict=True):
        assert (mine - theirs).norm() <= 1e-4 * theirs.norm()


def test_the_audited_model_stays_as_it_is():
    view = study("lenet").view("none", 0.0, 0)
    before = {name: value.clone() for name, value in view.model.state_dict().items()}
    GradientDistance(view, "euclidean")(*guess(view))
    after = view.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_what_is_random_in_a_model_does_not_spoil_the_derivative():
    made = study("perceptron")
    view = made.view("none", 0.0, 0)
    noisy = nn.Sequential(*list(view.model)[:3], nn.Dropout(0.5), view.model[3]).train()
    gradients = dict(zip(dict(noisy.named_parameters()), view.gradients.values(), strict=True))
    distance = GradientDistance(replace(view, model=noisy, gradients=gradients), "euclidean")
    state = torch.random.get_rng_state()
    first, second = distance(*guess(view)), distance(*guess(view))
    assert all(torch.equal(*map(torch.as_tensor, pair)) for pair in zip(first, second, strict=True))
    images, logits = guess(view)
    step = 1e-6 * torch.ones_like(images)
    slope = (distance(images + step, logits)[0] - distance(images - step, logits)[0]) / 2e-6
    assert slope == pytest.approx(float(first[1].sum()), rel=1e-3)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_without_anything_visible_there_is_no_distance():
    made = study("lenet")
    assert GradientDistance(made.view("all", 1.0, 0), "euclidean").blind
    assert not GradientDistance(made.view("random", 0.9, 0), "euclidean").blind


def test_coefficients_are_an_invertible_picture_of_the_pixels():
    coefficients = random_coefficients((2, 1, 5, 8), torch.Generator().manual_seed(0))
    assert (image_of(torch.zeros(1, 4, 4)) == 0.5).all()
    coefficients.requires_grad_()
    weights = torch.rand(2, 1, 5, 8, generator=torch.Generator().manual_seed(1)).double()
    (expected,) = torch.autograd.grad((image_of(coefficients) * weights).sum(), [coefficients])
    assert torch.allclose(gradient_by_coefficients(weights), expected)
    basis = torch.eye(40).double().reshape(40, 1, 5, 8)
    pictures = (image_of(basis) - 0.5).flatten(1)
    gram = pictures @ pictures.T  # orthogonal, smaller the finer
    assert torch.allclose(gram, torch.diag(gram.diagonal()), atol=1e-12)
    assert gram[0, 0] == pytest.approx(1)
    assert gram[39, 39] < gram[1, 1] < 1


def test_total_variation_is_its_definition():
    images = torch.rand(2, 3, 5, 6, generator=torch.Generator().manual_seed(0)).double()
    images.requires_grad_()
    expected = images.diff(dim=-2).abs().mean() + images.diff(dim=-1).abs().mean()
    value, slope = total_variation(images.detach())
    assert value == pytest.approx(expected.item())
    assert torch.allclose(slope, torch.autograd.grad(expected, [images])[0])
