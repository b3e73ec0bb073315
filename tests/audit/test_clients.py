"""What a client does in the round that is attacked, and the rounds before."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from fedsens.audit._clients import CLIENTS, Case, FederatedTraining, split_equally, update_of
from fedsens.audit._metrics import assign_to_originals, measure_images
from fedsens.audit._target import attackable
from fedsens.audit._trial import Trial
from fedsens.data import Dataset

from .models import MODELS, study


def gradients_of(made, victim):
    x, y = made.images(victim)
    parameters = list(made.model.parameters())
    return torch.autograd.grad(cross_entropy(made.model(x), y), parameters)


@pytest.mark.parametrize("batch", [1, 4])
def test_the_worst_case_is_the_gradient_itself(batch):
    made = study("lenet", case=Case(batch))
    view = made.view("none", 0.0, 1)
    for seen, true in zip(view.gradients.values(), gradients_of(made, 1), strict=True):
        assert torch.equal(seen, true)
    assert view.batch == batch == len(made.images(1)[0])


def test_one_step_of_sgd_is_the_gradient_but_for_rounding():
    made = study("lenet", case=Case(2, 1, 0.5))
    view = made.view("random", 0.3, 0)
    for seen, true in zip(view.gradients.values(), gradients_of(made, 0), strict=True):
        known = ~seen.isnan()
        assert torch.allclose(seen[known], true[known], atol=1e-6)


def test_several_steps_are_what_training_does():
    case = Case(3, 4, 0.05)
    assert case.images == 12
    made = study("perceptron", case=case)
    x, y = made.images(1)
    model = MODELS["perceptron"]()
    for step in range(4):
        part = slice(3 * step, 3 * step + 3)
        grads = torch.autograd.grad(cross_entropy(model(x[part]), y[part]), model.parameters())
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), grads, strict=True):
                parameter -= 0.05 * gradient
    before = dict(made.model.named_parameters())
    view = made.view("none", 0.0, 1)
    for name, parameter in model.named_parameters():
        mean = (before[name] - parameter).detach() / 0.2
        assert torch.allclose(view.gradients[name], mean, atol=1e-5)


def test_the_global_model_is_not_changed():
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(1), torch.nn.Flatten(), torch.nn.Linear(64, 3))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    update = update_of(model, torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]), Case(2, 2))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert update.after["0.num_batches_tracked"] == 2
    assert (update.before["2.weight"] != update.after["2.weight"]).any()


def test_reconstructions_are_told_apart_by_what_they_show():
    true = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    order = [2, 0, 3, 1]
    assert torch.equal(assign_to_originals(true[order], true), true)
    trial = Trial("none", 0.0, "dlg", 0)
    half = torch.cat([true[:2], torch.full((2, 1, 8, 8), torch.nan)])
    outcome = measure_images(trial, half, true, 0 * true, 1.0)
    assert outcome.identified >= 0.5
    assert 0.5 < outcome.score < 0.8


def test_a_batch_is_attacked_and_judged_as_a_whole():
    made = study("lenet", victims=1, steps=150, case=Case(2))
    trial = Trial("none", 0.0, "dlg", 0, case=str(made.case))
    found, seconds = made.attack(trial)
    assert found.shape == (2, 1, 8, 8)
    outcome = made.measure(trial, found, seconds)
    assert outcome.score > made.prior()[0]
    assert outcome.identified == 1


@pytest.mark.parametrize(
    ("case", "text"),
    [
        (Case(), "the gradient of one image"),
        (Case(8), "the gradient of 8 images"),
        (Case(1, 1), "one step of SGD of one image"),
        (Case(8, 4), "4 steps of SGD of 8 images each"),
    ],
)
def test_a_case_is_named_in_words(case, text):
    assert str(case) == text


def two_classes(count=320):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(count) % 2
    x = torch.rand((count, 1, 4, 4), generator=generator) * 0.5 + 0.5 * y[:, None, None, None]
    return Dataset(x, y, 2)


def model(*more):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(*more, nn.Flatten(), nn.Linear(16, 2))


def test_a_federation_learns_keeps_its_models_and_repeats_itself():
    data, first = two_classes(), model()
    given = copy.deepcopy(first.state_dict())
    training = FederatedTraining(first, split_equally(data), 0.3)
    assert training.after(0) is first
    last = training.after(8)
    assert training.after(8) is last
    assert all(torch.equal(v, given[n]) for n, v in first.state_dict().items())
    assert (last(data.x).argmax(dim=1) == data.y).double().mean() > 0.9
    again = FederatedTraining(model(), split_equally(data), 0.3).after(8)
    assert torch.equal(again[-1].weight, last[-1].weight)


def test_one_step_each_is_the_mean_gradient():
    data, first = two_classes(CLIENTS * 2), model()
    trained = FederatedTraining(first, split_equally(data), 0.1).after(1)
    loss = nn.functional.cross_entropy(first(data.x), data.y)
    (gradient,) = torch.autograd.grad(loss, [first[-1].weight])
    assert torch.allclose(trained[-1].weight, first[-1].weight - 0.1 * gradient, atol=1e-6)


def test_a_client_counts_by_its_samples():
    data, first = two_classes(40), model()
    clients = [data.subset(part) for part in (np.arange(4), np.arange(4, 16))]  # one step each
    after = FederatedTraining(first, clients, 0.1).after(1)[-1].weight
    alone = [FederatedTraining(first, [own], 0.1).after(1)[-1].weight for own in clients]
    assert torch.allclose(after, (4 * alone[0] + 12 * alone[1]) / 16, atol=1e-6)


def test_clients_train_in_training_mode_and_the_attacked_mode_stays():
    data = two_classes()
    first = attackable(model(nn.BatchNorm2d(1), nn.Dropout(0.5)), data.x[:4], data.y[:4], 2, "eval")
    trained = FederatedTraining(first, split_equally(data), 0.1).after(1)
    assert not trained.training
    assert not torch.equal(trained[0].running_mean, first[0].running_mean)
