"""What clients do: the update that is attacked, and the rounds that its model was trained."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedsens._files import Arrays
from fedsens.audit._target import loss_of
from fedsens.data import Dataset

CLIENTS, BATCH, MOMENTUM = 8, 16, 0.9


@dataclass(frozen=True)
class Case:
    """What a client does in a round.

    Attributes:
        batch: samples of one step.
        local_steps: steps of SGD, each on samples of its own, as federated averaging sends them; 0
            for the gradient of one batch itself, which no rounding or averaging blurs: the worst
            case.
        rate: learning rate of SGD.
        rounds: that the global model has been trained for before.
        noun: what a sample is called.
    """

    batch: int = 1
    local_steps: int = 0
    rate: float = 0.1
    rounds: int = 0
    noun: str = "image"

    @property
    def images(self) -> int:
        """How many samples an update is from."""
        return self.batch * max(1, self.local_steps)

    def __str__(self) -> str:
        own = _count(self.batch, self.noun)
        after = f", after {_count(self.rounds, 'round')}" if self.rounds else ""
        if not self.local_steps:
            return f"the gradient of {own}{after}"
        each = "" if self.local_steps == 1 else " each"
        return f"{_count(self.local_steps, 'step')} of SGD of {own}{each}{after}"


@dataclass(frozen=True)
class Update:
    """A model before and after a client's training.

    Attributes:
        before: name to array, the whole state.
        after: likewise.
        step: what the difference is divided by for the mean gradient.
    """

    before: Arrays
    after: Arrays
    step: float


def update_of(model: nn.Module, x: Tensor, y: Tensor, case: Case) -> Update:
    """Train as the case says.

    Returns:
        The update. For a gradient the trained parameters in ``before`` are zeros and those in
        ``after`` the negative gradient, so that nothing is lost in rounding.
    """
    mine = copy.deepcopy(model)
    before = _state(mine)
    free = {name: p for name, p in mine.named_parameters() if p.requires_grad}
    if not case.local_steps:
        loss = loss_of(mine(x), y)
        grads = torch.autograd.grad(loss, list(free.values()), materialize_grads=True)
        made = {name: -g.numpy() for name, g in zip(free, grads, strict=True)}
        zeros = {name: 0 * array for name, array in made.items()}
        return Update(before | zeros, _state(mine) | made, 1.0)
    optimizer = torch.optim.SGD(free.values(), lr=case.rate)
    for xs, ys in zip(torch.split(x, case.batch), torch.split(y, case.batch), strict=True):
        optimizer.zero_grad()
        loss_of(mine(xs), ys).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return Update(before, _state(mine), case.rate * case.local_steps)


def _state(model: nn.Module) -> Arrays:
    return {name: value.detach().clone().numpy() for name, value in model.state_dict().items()}


def _count(number: int, noun: str) -> str:
    return f"{'one' if number == 1 else number} {noun}{'s' if number > 1 else ''}"


def split_equally(samples: Dataset, clients: int = CLIENTS) -> list[Dataset]:
    """Equal shares of samples in random order, of each client that has at least two."""
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))
    parts = [part.numpy() for part in order.tensor_split(clients)]
    return [samples.subset(part) for part in parts if len(part) > 1]


class FederatedTraining:
    """A model that clients train, and how it was after each round that was asked for.

    Federated averaging (McMahan et al. 2017, arXiv 1602.05629): each client trains one epoch a
    round by SGD with momentum of 0.9 in batches of 16; the mean of their states, weighted by their
    samples, is the next model.
    """

    def __init__(
        self, model: nn.Module, clients: Sequence[Dataset], rate: float, seed: int = 0
    ) -> None:
        """Start at round 0."""
        self._clients, self._rate, self._seed = list(clients), rate, seed
        self._models = [model]

    def after(self, rounds: int) -> nn.Module:
        """The model after some rounds; trained only once."""
        while len(self._models) <= rounds:
            self._models.append(self._next(self._models[-1], len(self._models)))
        return self._models[rounds]

    def _next(self, model: nn.Module, number: int) -> nn.Module:
        generator = torch.Generator().manual_seed(1000 * self._seed + number)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(1000 * self._seed + number)
            states = [self._local(model, own, generator) for own in self._clients]
        new = copy.deepcopy(model)
        sizes = [len(own) for own in self._clients]
        new.load_state_dict({name: _mean([s[name] for s in states], sizes) for name in states[0]})
        return new

    def _local(
        self, model: nn.Module, own: Dataset, generator: torch.Generator
    ) -> dict[str, Tensor]:
        mine = copy.deepcopy(model).train()
        free = [parameter for parameter in mine.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(free, lr=self._rate, momentum=MOMENTUM)
        for chosen in torch.split(torch.randperm(len(own), generator=generator), BATCH):
            if len(chosen) > 1:  # which BatchNorm may refuse
                optimizer.zero_grad()
                loss = loss_of(mine(own.x[chosen]), own.y[chosen])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return mine.state_dict()


def _mean(values: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    first = values[0]
    if not first.is_floating_point():
        return first
    shares = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
    mean: Tensor = torch.tensordot(shares, torch.stack(list(values)).double(), dims=1)
    return mean.to(first.dtype)
