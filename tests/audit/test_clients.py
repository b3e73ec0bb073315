"""Federated averaging, for the models that real updates are of."""

import copy

import numpy as np
import torch
from torch import nn

from fedsens.audit._clients import CLIENTS, FederatedTraining, split_equally
from fedsens.audit._target import attackable
from fedsens.data import Dataset


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
