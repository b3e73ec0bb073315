"""Federated averaging in one loop, for the models that real updates are of."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fedsens.audit.target import loss_of
from fedsens.data import Dataset

CLIENTS, BATCH, MOMENTUM = 8, 16, 0.9


class Federation:
    """A model that 8 clients train, and how it was after each round that was asked for.

    Each client has an equal share of the samples, in random order, and trains one epoch a round
    by SGD with momentum; the mean of their states is the next model.
    """

    def __init__(self, model: nn.Module, samples: Dataset, rate: float, seed: int = 0) -> None:
        """Start at round 0.

        Args:
            model: before the first round; it is not changed.
            samples: of all clients.
            rate: learning rate.
            seed: of the order of the samples.
        """
        self._samples, self._rate, self._seed = samples, rate, seed
        self._models = [model]

    def after(self, rounds: int) -> nn.Module:
        """The model after some rounds; trained only once.

        Args:
            rounds: how many, 0 for the initial model.

        Returns:
            The model.
        """
        while len(self._models) <= rounds:
            self._models.append(self._next(self._models[-1], len(self._models)))
        return self._models[rounds]

    def _next(self, model: nn.Module, number: int) -> nn.Module:
        generator = torch.Generator().manual_seed(1000 * self._seed + number)
        order = torch.randperm(len(self._samples), generator=torch.Generator().manual_seed(0))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(1000 * self._seed + number)
            states = [
                self._local(model, part[torch.randperm(len(part), generator=generator)])
                for part in order.tensor_split(CLIENTS)
                if len(part) > 1
            ]
        new = copy.deepcopy(model)
        new.load_state_dict({name: _mean([s[name] for s in states]) for name in states[0]})
        return new

    def _local(self, model: nn.Module, part: Tensor) -> dict[str, Tensor]:
        mine = copy.deepcopy(model).train()
        free = [parameter for parameter in mine.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(free, lr=self._rate, momentum=MOMENTUM)
        for chosen in torch.split(part, BATCH):
            if len(chosen) > 1:  # which BatchNorm may refuse
                optimizer.zero_grad()
                loss = loss_of(mine(self._samples.x[chosen]), self._samples.y[chosen])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return mine.state_dict()


def _mean(values: list[Tensor]) -> Tensor:
    first = values[0]
    if not first.is_floating_point():
        return first
    mean: Tensor = torch.stack(values).mean(dim=0)
    return mean
