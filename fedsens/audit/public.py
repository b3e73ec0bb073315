"""What an attacker makes of public images of the same kind, once for each model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from fedsens.audit.view import AttackView

CHUNK = 50  # images at a time
MOST = 2**28  # values that all gradients together may have: 1 GiB


def public_gradients(view: AttackView) -> tuple[Tensor, Tensor, Tensor] | None:
    """The whole gradients of the attacker's public images, kept in the view's memo.

    The attacker has model and images, so no coordinate of these is hidden from it.

    Args:
        view: the attacker's.

    Returns:
        Gradients as rows, of as many of the first images as 1 GiB holds, and those images and their
        labels; None without public images.
    """
    if view.public is None:
        return None
    if "public" not in view.memo:
        x, y = view.public
        size = sum(gradient.numel() for gradient in view.gradients.values())
        count = max(1, min(len(x), MOST // max(1, size)))
        rows = gradients_of(view.model, list(view.gradients), x[:count], y[:count])
        view.memo["public"] = (rows, x[:count], y[:count])
    kept: tuple[Tensor, Tensor, Tensor] = view.memo["public"]
    return kept


def gradients_of(model: nn.Module, names: list[str], x: Tensor, y: Tensor) -> Tensor:
    """The gradient of the cross-entropy of every image by itself.

    Args:
        model: a classifier.
        names: of the parameters.
        x: images.
        y: their labels.

    Returns:
        One row for each image, the parameters in the order of the names.
    """
    named = {name: p.detach() for name, p in model.named_parameters()}
    free = {name: named.pop(name) for name in names}
    buffers = dict(model.named_buffers())

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, {**named, **buffers, **parameters}, (image[None],))
        value: Tensor = cross_entropy(logits, label[None])
        return value

    per_image = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")
    rows = []
    for xs, ys in zip(torch.split(x, CHUNK), torch.split(y, CHUNK), strict=True):
        made = per_image(free, xs, ys)
        rows.append(torch.cat([gradient.flatten(1) for gradient in made.values()], dim=1))
    return torch.cat(rows)


def visible(view: AttackView) -> tuple[Tensor, Tensor]:
    """The view as one vector.

    Args:
        view: the attacker's.

    Returns:
        Which coordinates are visible, and all values, NaN where they are not.
    """
    flat = torch.cat([gradient.flatten() for gradient in view.gradients.values()])
    return ~flat.isnan(), flat
