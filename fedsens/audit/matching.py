"""Gradient matching: images whose gradient is the one that was seen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from fedsens.audit.labels import infer_label
from fedsens.audit.registry import Effort
from fedsens.audit.view import AttackView

Distance = Literal["euclidean", "cosine"]


@dataclass(frozen=True)
class Matching:
    """How gradients are matched.

    Attributes:
        distance: between the gradient of the guess and the one that was seen.
        smoothness: weight of the total variation of the guess.
        signed: Adam on the sign of the gradient (Geiping et al. 2020) instead of L-BFGS.
        naive: take encrypted coordinates for zeros instead of leaving them out.
        infer: read the label off the last layer where possible (iDLG), instead of guessing it too.
    """

    distance: Distance = "euclidean"
    smoothness: float = 0.0
    signed: bool = False
    naive: bool = False
    infer: bool = True


def match(view: AttackView, matching: Matching, effort: Effort) -> Tensor:
    """Find images whose gradient matches; the start with the lowest loss wins.

    Args:
        view: the attacker's.
        matching: what to minimise and how.
        effort: steps and starts.

    Returns:
        Images of shape (batch, channels, height, width) in [0, 1].
    """
    best, lowest = torch.full((view.batch, *view.shape), 0.5), math.inf
    target = _target(view, matching.naive)
    label = infer_label(view) if matching.infer and view.batch == 1 else None
    for _ in range(effort.starts):
        guess = torch.rand((view.batch, *view.shape), generator=effort.generator)
        logits = torch.randn((view.batch, view.classes), generator=effort.generator)
        if label is not None:
            logits = torch.zeros_like(logits)
            logits[:, label] = 1e3  # softmax of it is one-hot
        loss_of = _loss(view, target, matching)
        run = _signed_adam if matching.signed else _lbfgs
        image, loss = run(loss_of, guess, logits, label is None, effort.steps)
        if loss < lowest:
            best, lowest = image, loss
    return best.clamp(0, 1)


Seen = list[tuple[Tensor, Tensor]]  # of each parameter: which coordinates, and their values
LossOf = Callable[[Tensor, Tensor], Tensor]


def _target(view: AttackView, naive: bool) -> Seen:
    seen = []
    for gradient in view.gradients.values():
        known = torch.ones_like(gradient, dtype=torch.bool) if naive else ~gradient.isnan()
        seen.append((known, gradient.nan_to_num()[known]))
    return seen


def _loss(view: AttackView, target: Seen, matching: Matching) -> LossOf:
    parameters = view.parameters
    energy = sum(float(value.square().sum()) for _, value in target)
    energy = max(energy, 1e-30)

    def loss_of(guess: Tensor, logits: Tensor) -> Tensor:
        soft = torch.softmax(logits, dim=1)
        cross_entropy = -(soft * log_softmax(view.model(guess), dim=1)).sum(dim=1).mean()
        made = torch.autograd.grad(cross_entropy, parameters, create_graph=True)
        pairs = [(g[known], value) for g, (known, value) in zip(made, target, strict=True)]
        if matching.distance == "euclidean":
            away = torch.stack([(mine - seen).square().sum() for mine, seen in pairs])
            loss = away.sum() / energy
        else:
            inner = torch.stack([(mine * seen).sum() for mine, seen in pairs]).sum()
            length = torch.stack([mine.square().sum() for mine, _ in pairs]).sum().sqrt()
            loss = 1 - inner / (length * math.sqrt(energy)).clamp_min(1e-30)
        return loss + matching.smoothness * _total_variation(guess)

    return loss_of


def _total_variation(image: Tensor) -> Tensor:
    down = (image[..., 1:, :] - image[..., :-1, :]).abs().mean()
    return down + (image[..., :, 1:] - image[..., :, :-1]).abs().mean()


def _lbfgs(
    loss_of: LossOf, guess: Tensor, logits: Tensor, free: bool, steps: int
) -> tuple[Tensor, float]:
    guess.requires_grad_()
    logits.requires_grad_(free)
    wanted = [guess, logits] if free else [guess]
    optimizer = torch.optim.LBFGS(
        wanted, max_iter=steps, history_size=50, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        loss = loss_of(guess, logits)
        grads = torch.autograd.grad(loss, wanted)
        for variable, grad in zip(wanted, grads, strict=True):
            variable.grad = grad
        return loss.item()

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return guess.detach(), loss_of(guess, logits).item()


def _signed_adam(
    loss_of: LossOf, guess: Tensor, logits: Tensor, free: bool, steps: int
) -> tuple[Tensor, float]:
    guess.requires_grad_()
    logits.requires_grad_(free)
    wanted = [guess, logits] if free else [guess]
    optimizer = torch.optim.Adam(wanted, lr=0.1)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        grads = torch.autograd.grad(loss_of(guess, logits), wanted)
        guess.grad = grads[0].sign()
        if free:
            logits.grad = grads[1]
        optimizer.step()
        decay.step()
        with torch.no_grad():
            guess.clamp_(0, 1)
    return guess.detach(), loss_of(guess, logits).item()
