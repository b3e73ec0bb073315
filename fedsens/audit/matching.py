"""Gradient matching: images whose gradient is the one that was seen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsens.audit.distance import Distance, GradientDistance
from fedsens.audit.labels import infer_label
from fedsens.audit.registry import Effort
from fedsens.audit.spectrum import gradient_by_coefficients, image_of, random_coefficients
from fedsens.audit.view import AttackView

HISTORY = 50  # of L-BFGS
CONVERGED = 1e-13  # change of the loss, which is about 1 at the start


@dataclass(frozen=True)
class Matching:
    """How gradients are matched.

    Attributes:
        distance: between the gradient of the guess and the one that was seen.
        smoothness: weight of the total variation of the guess.
        signed: Adam on the sign of the gradient by the pixels (Geiping et al. 2020) instead of
            L-BFGS on cosine coefficients.
        naive: take encrypted coordinates for zeros instead of leaving them out.
        infer: read the label off the last layer where possible (iDLG), instead of guessing it too.
    """

    distance: Distance = "euclidean"
    smoothness: float = 0.0
    signed: bool = False
    naive: bool = False
    infer: bool = True


# The loss, and its derivatives by the images and by the logits of the labels.
Objective = Callable[[Tensor, Tensor], tuple[float, Tensor, Tensor]]


def match(view: AttackView, matching: Matching, effort: Effort) -> Tensor:
    """Find images whose gradient matches; the start with the lowest loss wins.

    Args:
        view: the attacker's.
        matching: what to minimise and how.
        effort: steps and starts.

    Returns:
        Images of shape (batch, channels, height, width) in [0, 1]; grey where nothing but zeros is
        visible, which any guess might match.
    """
    shape = (view.batch, *view.shape)
    best, lowest = torch.full(shape, 0.5, dtype=torch.float64), math.inf
    distance = GradientDistance(view, matching.distance, matching.naive)
    if distance.blind:
        return best.float()
    objective = _objective(distance, matching)
    label = infer_label(view) if matching.infer and view.batch == 1 else None
    run = _signed_adam if matching.signed else _lbfgs
    for _ in range(effort.starts):
        logits = torch.randn((view.batch, view.classes), generator=effort.generator).double()
        if label is not None:
            logits = torch.zeros_like(logits)
            logits[:, label] = 1e3  # softmax of it is one-hot
        image, loss = run(objective, shape, logits, label is None, effort)
        if loss < lowest:
            best, lowest = image, loss
    return best.float().clamp(0, 1)


def total_variation(images: Tensor) -> tuple[float, Tensor]:
    """Mean absolute difference of neighbours down plus that across, and its derivative.

    Args:
        images: of shape (..., height, width).

    Returns:
        The variation, and its derivative by the pixels.
    """
    down = images[..., 1:, :] - images[..., :-1, :]
    across = images[..., 1:] - images[..., :-1]
    slope = torch.zeros_like(images)
    for part, dim in ((down, -2), (across, -1)):
        step = part.sign() / part.numel()
        size = part.shape[dim]
        slope.narrow(dim, 1, size).add_(step)
        slope.narrow(dim, 0, size).sub_(step)
    return float(down.abs().mean() + across.abs().mean()), slope


def _objective(distance: GradientDistance, matching: Matching) -> Objective:
    def objective(images: Tensor, logits: Tensor) -> tuple[float, Tensor, Tensor]:
        away, by_images, by_logits = distance(images, logits)
        if not matching.smoothness:
            return away, by_images, by_logits
        rough, slope = total_variation(images)
        return (
            away + matching.smoothness * rough,
            by_images + matching.smoothness * slope,
            by_logits,
        )

    return objective


def _lbfgs(
    objective: Objective, shape: tuple[int, ...], logits: Tensor, free: bool, effort: Effort
) -> tuple[Tensor, float]:
    guess = random_coefficients(shape, effort.generator)
    optimizer = torch.optim.LBFGS(
        [guess, logits] if free else [guess],
        max_iter=effort.steps,
        history_size=HISTORY,
        line_search_fn="strong_wolfe",
        tolerance_grad=CONVERGED,
        tolerance_change=CONVERGED,
    )

    def closure() -> float:
        loss, by_images, logits.grad = objective(image_of(guess), logits)
        guess.grad = gradient_by_coefficients(by_images)
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    image = image_of(guess)
    return image, objective(image, logits)[0]


def _signed_adam(
    objective: Objective, shape: tuple[int, ...], logits: Tensor, free: bool, effort: Effort
) -> tuple[Tensor, float]:
    guess = torch.rand(shape, generator=effort.generator).double()
    optimizer = torch.optim.Adam([guess, logits] if free else [guess], lr=0.1)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, effort.steps)
    for _ in range(effort.steps):
        _, by_images, logits.grad = objective(guess, logits)
        guess.grad = by_images.sign()
        optimizer.step()
        decay.step()
        guess.clamp_(0, 1)
    return guess, objective(guess, logits)[0]
