"""Learned inversion: regress images on gradients of public data, as the server can compute them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from fedsens.audit.registry import Effort, register_attack
from fedsens.audit.view import AttackView

CHUNK = 50  # public images at a time
RIDGE = 1e-4  # relative to the mean diagonal of the kernel


@register_attack("learned", threat="learned")
def learned(view: AttackView, effort: Effort) -> Tensor:
    """Ridge regression from the visible coordinates of a gradient to the image behind it.

    The attacker computes the gradients of public images of the same kind under the same model and
    keeps the coordinates that it sees of the victim's. Only those ever enter, standardised; the
    regression is solved in its dual form, with one equation for each public image. Without public
    images, or with more than one image in the update: a grey image.
    """
    blank = torch.full((view.batch, *view.shape), 0.5)
    known = [~gradient.isnan() for gradient in view.gradients.values()]
    if view.public is None or view.batch != 1 or not any(each.any() for each in known):
        return blank
    x, y = view.public
    rows = _visible(view, known, x, y).double()
    target = torch.cat([g[k] for g, k in zip(view.gradients.values(), known, strict=True)]).double()
    mean, spread = rows.mean(dim=0), rows.std(dim=0)
    moving = spread > 1e-12 * spread.max()
    rows = (rows[:, moving] - mean[moving]) / spread[moving]
    target = (target[moving] - mean[moving]) / spread[moving]
    kernel = rows @ rows.T
    images = x.double().flatten(1)
    centre = images.mean(dim=0)
    kernel.diagonal().add_(RIDGE * float(kernel.diagonal().mean()) + 1e-12)
    weights = torch.linalg.solve(kernel, images - centre)
    found: Tensor = centre + (rows @ target) @ weights
    return found.float().reshape(blank.shape).clamp(0, 1)


def _visible(view: AttackView, known: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The visible coordinates of each public image's gradient, one row each."""
    named = {name: p.detach() for name, p in view.model.named_parameters()}
    free = {name: named.pop(name) for name in view.gradients}
    buffers = dict(view.model.named_buffers())

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(view.model, {**named, **buffers, **parameters}, (image[None],))
        value: Tensor = cross_entropy(logits, label[None])
        return value

    per_image = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")
    rows = []
    for xs, ys in zip(torch.split(x, CHUNK), torch.split(y, CHUNK), strict=True):
        made = per_image(free, xs, ys)
        kept = [g.flatten(1)[:, k.flatten()] for g, k in zip(made.values(), known, strict=True)]
        rows.append(torch.cat(kept, dim=1))
    return torch.cat(rows)
