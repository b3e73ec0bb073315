"""Plain FedAvg in one loop, for models that the app does not have."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from client.partition import partition_indices
from client.task import train
from fedsens.data import Dataset

BATCH, RATE, MOMENTUM = 16, 0.02, 0.9  # the app's defaults


class Federation:
    """A model that clients train, and how it was after each round that was asked for."""

    def __init__(self, model: nn.Module, clients: Sequence[Dataset], seed: int = 0) -> None:
        """Start at round 0.

        Args:
            model: before the first round; it is not changed.
            clients: the images of each.
            seed: of the order of the images.
        """
        self._clients, self._seed = clients, seed
        self._models = [copy.deepcopy(model)]

    def after(self, rounds: int) -> nn.Module:
        """The model after some rounds of one local epoch each; trained only once.

        Args:
            rounds: how many, 0 for the initial model.

        Returns:
            The model.
        """
        while len(self._models) <= rounds:
            self._models.append(self._next(self._models[-1], len(self._models)))
        return self._models[rounds]

    def _next(self, model: nn.Module, number: int) -> nn.Module:
        states = []
        for client, data in enumerate(self._clients):
            mine = copy.deepcopy(model)
            train(
                mine,
                data,
                epochs=1,
                batch_size=BATCH,
                learning_rate=RATE,
                momentum=MOMENTUM,
                seed=1000 * (1000 * self._seed + number) + client,
                device=torch.device("cpu"),
            )
            states.append(mine.state_dict())
        new = copy.deepcopy(model)
        new.load_state_dict(mean_state(states, [len(data) for data in self._clients]))
        return new


def dealt(images: Dataset, clients: int, seed: int = 0) -> list[Dataset]:
    """Deal images out, labels from Dirichlet 1.

    Args:
        images: of all clients.
        clients: how many there are.
        seed: of the partition.

    Returns:
        The images of each.
    """
    parts = partition_indices(images.y.numpy(), clients, seed=seed)
    return [images.subset(part) for part in parts]


def mean_state(states: Sequence[Mapping[str, Tensor]], images: Sequence[int]) -> dict[str, Tensor]:
    """The weighted mean of models, as in federated averaging (arXiv 1602.05629).

    Args:
        states: name to tensor of each client, floating point.
        images: how many each client has.

    Returns:
        Name to mean, in the type of the first.
    """
    total = sum(images)
    pairs = list(zip(states, images, strict=True))
    return {
        name: torch.stack([s[name].double() * (n / total) for s, n in pairs]).sum(dim=0).to(v.dtype)
        for name, v in states[0].items()
    }
