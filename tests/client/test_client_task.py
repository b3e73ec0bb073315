from __future__ import annotations

import copy
import math

import pytest
import torch

from client import task
from client.models import build_model
from client.partition import load_partition
from fedsens.data import Dataset
from fedsens.errors import ConfigurationError

CPU = torch.device("cpu")
SETTINGS = {"epochs": 3, "batch_size": 16, "learning_rate": 0.02, "momentum": 0.9}


def run(model, dataset, seed=0, **changes):
    return task.train(model, dataset, **{**SETTINGS, **changes}, seed=seed, device=CPU)


def flat(model) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.fixture
def model():
    return build_model("digits-cnn", (1, 8, 8), 10, seed=0)


@pytest.fixture(scope="module")
def small():
    return load_partition("digits", 0, 8)[0]


class Fixed(torch.nn.Module):
    """Logits that are the pixels of the image themselves."""

    def forward(self, x):
        return x.flatten(1)


def test_training_lowers_the_loss(model, small):
    before, _ = task.test(model, small, CPU)
    reported = run(model, small)["loss"]
    after, accuracy = task.test(model, small, CPU)
    assert after < 0.5 * before
    assert 0 < reported < before
    assert accuracy > 0.7


def test_reported_loss_is_the_mean_over_the_images(small):
    """With a rate of 0 the weights stay, so it is the loss that test() finds."""
    model = build_model("digits-cnn", (1, 8, 8), 10, seed=0)
    expected, _ = task.test(copy.deepcopy(model), small, CPU)
    assert run(model, small, learning_rate=0.0)["loss"] == pytest.approx(expected, rel=1e-5)


def test_same_seed_same_weights(model, small):
    torch.manual_seed(1)
    one, same, other = (copy.deepcopy(model) for _ in range(3))
    run(one, small, seed=5, epochs=1)
    torch.rand(3)
    run(same, small, seed=5, epochs=1)
    run(other, small, seed=6, epochs=1)
    assert torch.equal(flat(one), flat(same))
    assert not torch.equal(flat(one), flat(other))


def test_dropout_is_seeded_and_the_global_generator_left_alone(small):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(), torch.nn.Linear(64, 10))
    before = torch.get_rng_state()
    one, same = copy.deepcopy(model), copy.deepcopy(model)
    run(one, small, seed=5, epochs=1)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(3)
    run(same, small, seed=5, epochs=1)
    assert torch.equal(flat(one), flat(same))


def test_fedprox_pulls_towards_the_global_weights(model, small):
    start = flat(model)
    distances = []
    for mu in (0.0, 0.1, 10.0):
        trained = copy.deepcopy(model)
        run(trained, small, proximal_mu=mu, learning_rate=0.01)
        distances.append((flat(trained) - start).norm().item())
    assert distances[0] > distances[1] > 3 * distances[2] > 0


def test_fedprox_is_the_gradient_of_its_term():
    """Two full-batch steps against autograd of loss + mu / 2 * ||w - w0||^2."""
    mu, rate = 0.7, 0.3
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(6, 1, 2, 2, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2])
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)).double()
    dataset = Dataset(x.double(), y, 3)
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    start = [weight.clone() for weight in weights]
    for _ in range(2):
        weight, bias = (value.requires_grad_() for value in weights)
        loss = torch.nn.functional.cross_entropy(dataset.x.flatten(1) @ weight.T + bias, y)
        term = sum(((w - w0) ** 2).sum() for w, w0 in zip((weight, bias), start, strict=True))
        gradients = torch.autograd.grad(loss + mu / 2 * term, (weight, bias))
        weights = [
            (value - rate * gradient).detach()
            for value, gradient in zip((weight, bias), gradients, strict=True)
        ]
    settings = {"epochs": 2, "batch_size": 6, "learning_rate": rate, "momentum": 0.0}
    run(model, dataset, **settings, proximal_mu=mu)
    for parameter, expected in zip(model.parameters(), weights, strict=True):
        torch.testing.assert_close(parameter.detach(), expected)


@pytest.mark.parametrize("changes", [{"epochs": 0}, {"batch_size": 0}])
def test_refuses_to_train_on_nothing(model, small, changes):
    with pytest.raises(ConfigurationError, match="at least 1 epoch and 1 image"):
        run(model, small, **changes)


@pytest.mark.parametrize("count", [1, 8, 9, 16, 17, 18])
def test_an_epoch_sees_every_image_once_and_none_alone(count):
    dataset = Dataset(torch.zeros(count, 1, 2, 2), torch.arange(count), count)
    seen = [y for _, y in task._shuffled(dataset, 8, CPU)]
    assert sorted(torch.cat(seen).tolist()) == list(range(count))
    assert count == 1 or min(map(len, seen)) > 1
    assert max(map(len, seen)) <= 9


def test_batch_norm_survives_a_lone_last_image():
    model = build_model("resnet18", (1, 8, 8), 2, seed=0)
    run(model, Dataset(torch.rand(5, 1, 8, 8), torch.tensor([0, 1, 0, 1, 0]), 2), batch_size=4)


def test_loss_and_accuracy_by_hand():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    dataset = Dataset(logits.view(3, 1, 1, 2), torch.tensor([0, 1, 1]), 2)
    model = torch.nn.Sequential(Fixed())
    loss, accuracy = task.test(model, dataset, CPU)
    expected = (math.log1p(math.exp(-2)) + math.log1p(math.exp(-1)) + math.log1p(math.exp(3))) / 3
    assert loss == pytest.approx(expected, rel=1e-6)
    assert accuracy == pytest.approx(2 / 3)
    assert not model.training


def test_loss_does_not_depend_on_the_batches(model, digits, monkeypatch):
    whole = task.test(model, digits, CPU)
    monkeypatch.setattr(task, "EVALUATION_BATCH", 100)
    assert task.test(model, digits, CPU) == pytest.approx(whole, rel=1e-6)


def test_federated_averaging_learns_the_digits(model):
    parts = [load_partition("digits", client, 8) for client in range(8)]
    examples = sum(len(train) for train, _ in parts)
    for round_number in range(5):
        total = dict.fromkeys(model.state_dict(), 0.0)
        for client, (train, _) in enumerate(parts):
            local = copy.deepcopy(model)
            run(local, train, seed=100 * round_number + client)
            for name, value in local.state_dict().items():
                total[name] += value * (len(train) / examples)
        model.load_state_dict(total)
    tested = sum(len(test) for _, test in parts)
    accuracy = sum(task.test(model, test, CPU)[1] * len(test) for _, test in parts) / tested
    assert accuracy >= 0.93
