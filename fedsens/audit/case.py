"""What a client does in the round that is attacked, and the update that comes of it."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedsens.audit.target import loss_of
from fedsens.files import Arrays


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

    Args:
        model: the global model, of :func:`~fedsens.audit.target.attackable`; it is not changed.
        x: the client's samples, as many as the case has.
        y: their labels.
        case: what the client does.

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
