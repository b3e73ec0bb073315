"""Learned inversion: regress images on gradients of public data, as the server can compute them."""

from __future__ import annotations

import torch
from torch import Tensor

from fedsens.audit.public import public_gradients, visible
from fedsens.audit.registry import Effort, register_attack
from fedsens.audit.view import AttackView

RIDGE = 1e-4  # relative to the mean diagonal of the kernel
LEVELS = 2  # of the noise's size in a factor of two, so that victims can share a regression


@register_attack("learned", threat="learned", applies=lambda view: view.batch == 1)
def learned(view: AttackView, effort: Effort) -> Tensor:
    """Ridge regression from the visible coordinates of a gradient to the image behind it.

    The attacker computes the gradients of public images of the same kind under the same model and
    keeps the coordinates that it sees of the victim's. Only those ever enter, standardised; the
    regression is solved in its dual form, with one equation for each public image. Coordinates that
    noise drowns weigh less: noise of variance v in a coordinate adds n v to its ridge. Without
    public images, or with more than one image in the update: a grey image.
    """
    known, values = visible(view)
    if view.public is None or view.batch != 1 or not known.any():
        return torch.full((view.batch, *view.shape), 0.5)
    rows, mean, spread, images = _standardised(view)
    known &= spread > 1e-12 * spread.max()
    target = ((values - mean) / spread)[known]
    noise = _level(view.noise)
    key = ("learned", known.numpy().tobytes(), noise)
    if key not in view.memo:
        view.memo[key] = _regression(rows[:, known], images, noise / spread[known])
    weights, scale = view.memo[key]
    centre = images.mean(dim=0)
    found: Tensor = centre + ((rows[:, known] @ (scale * target)).double() @ weights)
    return found.float().reshape(1, *view.shape).clamp(0, 1)


def _standardised(view: AttackView) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Standardised gradients of public images, their mean and spread, and the flat images."""
    if "standardised" not in view.memo:
        kept = public_gradients(view)
        assert kept is not None  # the caller has looked
        rows, x, _ = kept
        mean, spread = rows.mean(dim=0), rows.std(dim=0)
        made = (rows - mean) / spread.clamp_min(1e-30)
        view.memo["standardised"] = (made, mean, spread, x.double().flatten(1))
    kept_rows: tuple[Tensor, Tensor, Tensor, Tensor] = view.memo["standardised"]
    return kept_rows


def _regression(rows: Tensor, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The dual weights of each public image, and the factor of each coordinate."""
    count = len(rows)
    ridge = RIDGE * float(rows.square().sum()) / count + 1e-12
    scale = ridge / (ridge + count * noise.square())
    kernel = ((rows * scale) @ rows.T).double()
    kernel.diagonal().add_(ridge)
    return torch.linalg.solve(kernel, images - images.mean(dim=0)), scale


def _level(noise: float) -> float:
    """Round to a few levels in every factor of two."""
    if noise <= 0:
        return 0.0
    return float(2 ** (torch.tensor(noise).log2() * LEVELS).round().div(LEVELS))
