"""What leaks besides the samples: their labels, and whether one was in the update's batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsens.audit._attack import AttackView
from fedsens.audit._clients import Case, Update
from fedsens.audit._labels import label_accuracy, label_shares, share_error
from fedsens.audit._learned import gradients_of, visible
from fedsens.audit._metrics import Interval, interval
from fedsens.audit._study import AttackStudy
from fedsens.audit._trial import Protection

BATCHES = (1, 8, 32, 128)
UPDATES = 20  # of each size
POOL, MAX_VALUES = 512, 2**27  # candidates, and values that all their gradients together may have


@dataclass(frozen=True)
class MembershipResult:
    """How well members of a batch are told from other images.

    Attributes:
        policy: of the mask.
        ratio: share that is encrypted.
        remainder: what happens to the rest.
        batch: images of an update.
        auc: area under the curve, over updates: 1 tells all, 0.5 is a coin's.
    """

    policy: str
    ratio: float
    remainder: str
    batch: int
    auc: Interval


def membership_scores(view: AttackView, candidates: Tensor) -> Tensor:
    """Cosine between what is visible of an update and each candidate's own gradient.

    As in tests of gradient alignment: the gradient of a member is a part of the update, that of
    another image is not. What most images have in common tells nothing, so the candidates' mean is
    taken off both.

    Returns:
        One score for each candidate, higher for likely members; all 0 where nothing is visible.
    """
    known, values = visible(view)
    return _scores(values[known][None], candidates[:, known])[0]


def _scores(updates: Tensor, rows: Tensor) -> Tensor:
    """One row of scores for each update, from the visible coordinates."""
    centre = rows.mean(dim=0)
    rows, updates = rows - centre, updates - centre
    lengths = updates.norm(dim=1)[:, None] * rows.norm(dim=1)
    return (updates @ rows.T).div(lengths.clamp_min(1e-30))


def area_under_curve(members: Tensor, others: Tensor) -> float:
    """Share of pairs in which the member has the higher score; ties count half."""
    higher = (members[:, None] > others[None]).double().mean()
    equal = (members[:, None] == others[None]).double().mean()
    return float(higher + equal / 2)


def membership(
    study: AttackStudy, protections: Sequence[Protection], batches: Sequence[int] = BATCHES
) -> list[MembershipResult]:
    """Attack mean gradients of random batches of a pool of images that nobody trained on.

    Args:
        study: whose model and masks are attacked.
        protections: of the updates.
        batches: sizes; those of more than half of the pool are left out.

    Returns:
        One figure for each protection and size; the pool is as large as 512 MiB of gradients allow.
    """
    free = {name: p for name, p in study.model.named_parameters() if p.requires_grad}
    size = sum(parameter.numel() for parameter in free.values())
    pool = min(POOL, MAX_VALUES // max(1, size), len(study.others))
    usable = [batch for batch in batches if 2 * batch <= pool]
    if not usable:
        return []
    x, y = study.others.x[-pool:], study.others.y[-pool:]  # the attacker's own come first
    rows = gradients_of(study.model, list(free), x, y)
    return [
        MembershipResult(*protection, batch, interval(_areas(study, protection, rows, batch)))
        for protection in protections
        for batch in usable
    ]


def _areas(study: AttackStudy, protection: Protection, rows: Tensor, batch: int) -> list[float]:
    rng = np.random.default_rng([study.seed, batch])
    drawn = torch.zeros(UPDATES, len(rows), dtype=torch.bool)
    for members in drawn:
        members[rng.choice(len(rows), batch, replace=False)] = True
    views = [
        study.seen(_update(study, rows[members].mean(dim=0)), protection, Case(batch), rng)
        for members in drawn
    ]
    known, _ = visible(views[0])
    seen = torch.stack([visible(view)[1][known] for view in views])
    scores = _scores(seen, rows[:, known])
    return [area_under_curve(s[m], s[~m]) for s, m in zip(scores, drawn, strict=True)]


def _update(study: AttackStudy, gradient: Tensor) -> Update:
    state = {name: value.detach().numpy() for name, value in study.model.state_dict().items()}
    named = [(n, p) for n, p in study.model.named_parameters() if p.requires_grad]
    parts = torch.split(gradient, [p.numel() for _, p in named])
    made = {n: -part.reshape(p.shape).numpy() for (n, p), part in zip(named, parts, strict=True)}
    zeros = {name: 0 * array for name, array in made.items()}
    return Update(state | zeros, state | made, 1.0)


@dataclass(frozen=True)
class LabelLeak:
    """How well labels are inferred under a protection.

    Attributes:
        policy: of the mask.
        ratio: share that is encrypted.
        remainder: what happens to the rest.
        error: total-variation distance of the inferred shares from the truth, over victims.
        uniform: that of a uniform guess, the mean over victims.
        accuracy: share of the images whose label is named.
    """

    policy: str
    ratio: float
    remainder: str
    error: Interval
    uniform: float
    accuracy: float


def label_leaks(
    study: AttackStudy, protections: Sequence[Protection], victims: int
) -> list[LabelLeak]:
    """Infer the labels of every victim under every protection.

    Args:
        study: whose victims are attacked.
        protections: of their updates.
        victims: how many there are.

    Returns:
        One figure for each protection.
    """
    found: dict[Protection, list[tuple[float, float, float]]] = {p: [] for p in protections}
    for victim in range(victims):
        labels = study.images(victim)[1]
        for protection, errors in found.items():
            policy, ratio, remainder = protection
            shares = label_shares(study.view(policy, ratio, victim, remainder))
            shares = None if shares is None else shares[: study.victims.classes]
            error = share_error(shares, labels, study.victims.classes)
            errors.append((*error, label_accuracy(shares, labels)))
    return [_leak(protection, errors) for protection, errors in found.items()]


def _leak(protection: Protection, errors: Sequence[tuple[float, float, float]]) -> LabelLeak:
    mine, uniform, right = zip(*errors, strict=True)
    count = len(errors)
    return LabelLeak(*protection, interval(mine), sum(uniform) / count, sum(right) / count)
