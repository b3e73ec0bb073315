"""Gradient matching: images whose gradient is the one that was seen.

Deep Leakage from Gradients (Zhu et al. 2019, arXiv 1906.08935) and its kin by L-BFGS, Inverting
Gradients (Geiping et al. 2020, arXiv 2003.14053) and GradInversion's additions (Yin et al. 2021,
arXiv 2104.07586) by signed Adam.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from fedsens.audit._attack import AttackBudget, AttackView, register_attack
from fedsens.audit._distance import Distance, GradientDistance, StatisticsDistance, known_statistics
from fedsens.audit._labels import inferred_labels
from fedsens.audit._spectrum import gradient_by_coefficients, image_of, random_coefficients

HISTORY = 50  # of L-BFGS
CONVERGED = 1e-13  # change of the loss, which is about 1 at the start
EUCLIDEAN_SMOOTHNESS = 1e-4  # of the total variation, relative to the energy of the gradient
COSINE_SMOOTHNESS = 1e-3
STATISTICS = 1e-2  # weight of the distance between BatchNorm statistics
GROUP, CONSISTENCY = 4, 1e-2  # guesses side by side, and the pull to their mean


@dataclass(frozen=True)
class Matching:
    """How gradients are matched.

    Attributes:
        distance: between the gradient of the guess and the one that was seen.
        smoothness: weight of the total variation of the guess.
        signed: Adam on the sign of the gradient by the pixels (Geiping et al. 2020) instead of
            L-BFGS on cosine coefficients.
        naive: take encrypted coordinates for zeros instead of leaving them out.
        infer: read the labels off the update where possible (iDLG), instead of guessing them too.
        statistics: weight of the distance between BatchNorm statistics (Yin et al. 2021).
        group: guesses of each start that are improved side by side, with signed Adam.
        consistency: weight of their mean squared distance from their mean (Yin et al. 2021).
    """

    distance: Distance = "euclidean"
    smoothness: float = 0.0
    signed: bool = False
    naive: bool = False
    infer: bool = True
    statistics: float = 0.0
    group: int = 1
    consistency: float = 0.0


# The loss, and its derivatives by the images and by the logits of the labels.
Objective = Callable[[Tensor, Tensor], tuple[float, Tensor, Tensor]]


def match(view: AttackView, matching: Matching, budget: AttackBudget) -> Tensor:
    """Find images whose gradient matches; the start with the lowest loss wins.

    Returns:
        Images of shape (batch, channels, height, width) in [0, 1]; grey where nothing but zeros is
        visible, which any guess might match.
    """
    shape = (view.batch, *view.shape)
    best, lowest = torch.full(shape, 0.5, dtype=torch.float64), math.inf
    distance = GradientDistance(view, matching.distance, matching.naive)
    if distance.blind:
        return best.float()
    objective = _objective(view, distance, matching)
    labels = inferred_labels(view) if matching.infer else None
    for _ in range(budget.starts):
        logits = torch.randn((view.batch, view.classes), generator=budget.generator).double()
        if labels is not None:
            logits = 1e3 * one_hot(labels, view.classes).double()  # softmax of it is one-hot
        if matching.signed:
            image, loss = _signed_adam(objective, shape, logits, labels is None, budget, matching)
        else:
            image, loss = _lbfgs(objective, shape, logits, labels is None, budget)
        if loss < lowest:
            best, lowest = image, loss
    return best.float().clamp(0, 1)


def total_variation(images: Tensor) -> tuple[float, Tensor]:
    """Mean absolute difference of neighbours down plus that across; its derivative by pixels."""
    down = images[..., 1:, :] - images[..., :-1, :]
    across = images[..., 1:] - images[..., :-1]
    slope = torch.zeros_like(images)
    for part, dim in ((down, -2), (across, -1)):
        step = part.sign() / part.numel()
        size = part.shape[dim]
        slope.narrow(dim, 1, size).add_(step)
        slope.narrow(dim, 0, size).sub_(step)
    return float(down.abs().mean() + across.abs().mean()), slope


def _objective(view: AttackView, distance: GradientDistance, matching: Matching) -> Objective:
    further: list[tuple[float, Callable[[Tensor], tuple[float, Tensor]]]] = []
    if matching.smoothness:
        further.append((matching.smoothness, total_variation))
    if matching.statistics:
        further.append((matching.statistics, StatisticsDistance(view)))

    def objective(images: Tensor, logits: Tensor) -> tuple[float, Tensor, Tensor]:
        loss, by_images, by_logits = distance(images, logits)
        for weight, term in further:
            value, slope = term(images)
            loss, by_images = loss + weight * value, by_images + weight * slope
        return loss, by_images, by_logits

    return objective


def _lbfgs(
    objective: Objective, shape: tuple[int, ...], logits: Tensor, free: bool, budget: AttackBudget
) -> tuple[Tensor, float]:
    guess = random_coefficients(shape, budget.generator)
    optimizer = torch.optim.LBFGS(
        [guess, logits] if free else [guess],
        max_iter=budget.steps,
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
    objective: Objective,
    shape: tuple[int, ...],
    logits: Tensor,
    free: bool,
    budget: AttackBudget,
    matching: Matching,
) -> tuple[Tensor, float]:
    """The best of a group of guesses, each step pulled to their mean."""
    many = (matching.group, *shape)
    guesses = torch.rand(many, generator=budget.generator).double()
    beliefs = logits.repeat(matching.group, 1, 1)
    optimizer = torch.optim.Adam([guesses, beliefs] if free else [guesses], lr=0.1)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, budget.steps)
    for _ in range(budget.steps):
        pull = 2 * matching.consistency / guesses[0].numel() * (guesses - guesses.mean(dim=0))
        made = [objective(*pair) for pair in zip(guesses, beliefs, strict=True)]
        guesses.grad = (torch.stack([by_images for _, by_images, _ in made]) + pull).sign()
        beliefs.grad = torch.stack([by_logits for *_, by_logits in made])
        optimizer.step()
        decay.step()
        guesses.clamp_(0, 1)
    ends = [objective(*pair)[0] for pair in zip(guesses, beliefs, strict=True)]
    best = min(range(matching.group), key=lambda number: ends[number])
    return guesses[best], ends[best]


@register_attack("dlg-naive", threat="naive")
def dlg_naive(view: AttackView, budget: AttackBudget) -> Tensor:
    """DLG that takes encrypted coordinates for zeros, as in FedML-HE's evaluation."""
    return match(view, Matching(naive=True, infer=False), budget)


@register_attack("dlg-tv", threat="aware")
def dlg_tv(view: AttackView, budget: AttackBudget) -> Tensor:
    """IDLG with a total-variation prior: images are smooth. What it settles ``dlg`` has not to."""
    return match(view, Matching(smoothness=EUCLIDEAN_SMOOTHNESS), budget)


@register_attack("dlg", threat="aware")
def dlg(view: AttackView, budget: AttackBudget) -> Tensor:
    """DLG on the visible coordinates: image and label are guessed together."""
    return match(view, Matching(infer=False), budget)


@register_attack("idlg", threat="aware", applies=lambda view: view.batch > 1)
def idlg(view: AttackView, budget: AttackBudget) -> Tensor:
    """IDLG (Zhao et al. 2020, arXiv 2001.02610): the label is read off the last layer.

    Of single images it finds nothing that neither ``dlg`` nor ``dlg-tv`` finds, so that only an
    update of several is attacked by it unless it is asked for.
    """
    return match(view, Matching(), budget)


@register_attack("inverting-naive", threat="naive")
def inverting_naive(view: AttackView, budget: AttackBudget) -> Tensor:
    """Cosine distance, total variation and signed Adam, with zeros for what is encrypted."""
    return match(view, Matching("cosine", COSINE_SMOOTHNESS, signed=True, naive=True), budget)


@register_attack("inverting", threat="aware")
def inverting(view: AttackView, budget: AttackBudget) -> Tensor:
    """Cosine distance on the visible coordinates, total variation and signed Adam."""
    return match(view, Matching("cosine", COSINE_SMOOTHNESS, signed=True), budget)


def _has_statistics(view: AttackView) -> bool:
    return bool(known_statistics(view))


@register_attack("inverting-bn", threat="aware", applies=_has_statistics)
def inverting_bn(view: AttackView, budget: AttackBudget) -> Tensor:
    """The same, pulled to BatchNorm statistics: the batch's own where the update tells them.

    Without any that are known it is ``inverting``.
    """
    weight = STATISTICS if _has_statistics(view) else 0.0
    return match(
        view, Matching("cosine", COSINE_SMOOTHNESS, signed=True, statistics=weight), budget
    )


@register_attack("group", threat="aware", applies=lambda view: view.batch > 1)
def group(view: AttackView, budget: AttackBudget) -> Tensor:
    """GradInversion (Yin et al. 2021, arXiv 2104.07586): several guesses, pulled to their mean.

    With BatchNorm statistics where they are known; images are not registered to each other before
    the mean is taken, as they are small here.
    """
    weight = STATISTICS if _has_statistics(view) else 0.0
    matching = Matching(
        "cosine",
        COSINE_SMOOTHNESS,
        signed=True,
        statistics=weight,
        group=GROUP,
        consistency=CONSISTENCY,
    )
    return match(view, matching, budget)
