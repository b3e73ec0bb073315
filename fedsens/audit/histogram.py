"""How many images of each class an update is from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from fedsens.audit.metrics import Interval, interval
from fedsens.audit.public import public_gradients, visible
from fedsens.audit.study import Study
from fedsens.audit.trial import Protection
from fedsens.audit.view import AttackView

SUM = 1e3  # weight of the equation that the shares add up to 1, relative to all others


def label_shares(view: AttackView) -> Tensor | None:
    """The share of each class among the images of an update.

    A mean gradient is the mean of what its classes contribute. What a class contributes is taken
    from public images under the same model; the shares are the non-negative least-squares fit,
    each coordinate weighed by how much it varies within a class and by the noise in it. Only the
    last layer is used where anything of it is visible: it tells classes apart best.

    Args:
        view: the attacker's.

    Returns:
        Vector of ``classes`` shares that add up to 1; None where nothing visible tells, or without
        public images.
    """
    kept = public_gradients(view)
    known, values = visible(view)
    if kept is None or not known.any():
        return None
    head = known & _head(view)
    used = head if head.any() else known
    rows, _, y = kept
    key = ("labels", used.numpy().tobytes())
    if key not in view.memo:
        view.memo[key] = _classes(rows[:, used], y)
    present, means, within = view.memo[key]
    wanted = values[used].double()
    spread = (within / view.batch + view.noise**2).sqrt()
    telling = spread > 1e-9 * spread.max()
    if not telling.any():
        return None
    system = (means / spread)[:, telling].T.numpy()
    target = (wanted / spread)[telling].numpy()
    size = SUM * max(1.0, float(np.linalg.norm(system)))
    system = np.vstack([system, np.full((1, len(present)), size)])
    found, _ = nnls(system, np.append(target, size))
    shares = torch.zeros(view.classes, dtype=torch.float64)
    shares[present] = torch.from_numpy(found)
    return shares / shares.sum().clamp_min(1e-30)


def share_error(found: Tensor | None, labels: Tensor, classes: int) -> tuple[float, float]:
    """Total-variation distance of shares from the truth, and that of a uniform guess.

    Args:
        found: what was inferred; None counts as the uniform guess.
        labels: of the images.
        classes: number of them.

    Returns:
        Both distances, from 0 to 1. For one image the first is 0 if its label is certain.
    """
    true = torch.bincount(labels, minlength=classes).double() / len(labels)
    uniform = torch.full((classes,), 1 / classes, dtype=torch.float64)
    away = [float((each - true).abs().sum() / 2) for each in (uniform, found) if each is not None]
    return away[-1], away[0]


def label_accuracy(found: Tensor | None, labels: Tensor) -> float:
    """Share of the images whose label is named, if as many labels are named as there are images.

    Args:
        found: the inferred shares; None names none.
        labels: of the images.

    Returns:
        Overlap of the two multisets of labels, from 0 to 1.
    """
    if found is None:
        return 0.0
    count = len(labels)
    whole = (found * count).floor()
    rest = (found * count - whole).argsort(descending=True, stable=True)
    whole[rest[: count - int(whole.sum())]] += 1
    true = torch.bincount(labels, minlength=len(found))
    return float(torch.minimum(whole, true).sum()) / count


def _classes(rows: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The classes that there are, the mean row of each, and the variance within them."""
    present = torch.unique(y)
    means = torch.stack([rows[y == label].double().mean(dim=0) for label in present])
    within = torch.zeros(rows.shape[1], dtype=torch.float64)
    for label, mean in zip(present, means, strict=True):
        within += (rows[y == label].double() - mean).square().sum(dim=0)
    return present, means, within / len(rows)


def _head(view: AttackView) -> Tensor:
    names = [name for name, g in view.gradients.items() if g.shape[:1] == (view.classes,)][-2:]
    parts = [torch.full((g.numel(),), name in names) for name, g in view.gradients.items()]
    return torch.cat(parts)


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


def label_leaks(study: Study, protections: Sequence[Protection], victims: int) -> list[LabelLeak]:
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
            error = share_error(shares, labels, study.victims.classes)
            errors.append((*error, label_accuracy(shares, labels)))
    return [_leak(protection, errors) for protection, errors in found.items()]


def _leak(protection: Protection, errors: Sequence[tuple[float, float, float]]) -> LabelLeak:
    mine, uniform, right = zip(*errors, strict=True)
    count = len(errors)
    return LabelLeak(*protection, interval(mine), sum(uniform) / count, sum(right) / count)
