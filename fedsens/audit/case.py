"""What a client does in the round that is attacked, and the update that comes of it."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedsens.files import Arrays


@dataclass(frozen=True)
class Case:
    """What a client does in a round.

    Attributes:
        batch: images of one step.
        local_steps: steps of SGD, each on images of its own, as federated averaging sends them; 0
            for the gradient of one batch itself, which no rounding or averaging blurs: the worst
            case.
        rate: learning rate of SGD.
    """

    batch: int = 1
    local_steps: int = 0
    rate: float = 0.1

    @property
    def images(self) -> int:
        """How many images an update is from."""
        return self.batch * max(1, self.local_steps)

    def __str__(self) -> str:
        if not self.local_steps:
            return f"the gradient of {_count(self.batch, 'image')}"
        each = f" of {_count(self.batch, 'image')}" if self.local_steps == 1 else ""
        each = each or f" of {_count(self.batch, 'image')} each"
        return f"{_count(self.local_steps, 'step')} of SGD{each}"


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
        model: the global model, in the mode it trains in; it is not changed.
        x: the client's images, as many as the case has.
        y: their labels.
        case: what the client does.

    Returns:
        The update. For a gradient ``before`` is all zeros and ``after`` the negative gradient, so
        that nothing is lost in rounding.
    """
    mine = copy.deepcopy(model)
    before = _state(mine)
    free = {name: p for name, p in mine.named_parameters() if p.requires_grad}
    if not case.local_steps:
        grads = torch.autograd.grad(cross_entropy(mine(x), y), list(free.values()))
        zeros = {name: 0 * array for name, array in before.items()}
        made = {n: -g.numpy() for n, g in zip(free, grads, strict=True)}
        return Update(zeros, zeros | made, 1.0)
    optimizer = torch.optim.SGD(free.values(), lr=case.rate)
    for xs, ys in zip(torch.split(x, case.batch), torch.split(y, case.batch), strict=True):
        optimizer.zero_grad()
        cross_entropy(mine(xs), ys).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return Update(before, _state(mine), case.rate * case.local_steps)


def _state(model: nn.Module) -> Arrays:
    return {name: value.detach().clone().numpy() for name, value in model.state_dict().items()}


def _count(number: int, noun: str) -> str:
    return f"{'one' if number == 1 else number} {noun}{'s' if number > 1 else ''}"
