"""What an attacker learns from public images of the same kind, once for each model."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedsens.audit._attack import AttackBudget, AttackView, register_attack
from fedsens.audit._target import logits_of, loss_of, without_records

LOGGER = logging.getLogger(__name__)
CHUNK = 50  # images at a time
MAX_VALUES = 2**28  # values that all gradients together may have: 1 GiB
PerSample = Callable[[Tensor, Tensor], Tensor]
RIDGE = 1e-4  # relative to the mean diagonal of the kernel
LEVELS = 2  # of the noise's size in a factor of two, so that victims can share a regression


def public_gradients(view: AttackView) -> tuple[Tensor, Tensor, Tensor] | None:
    """The whole gradients of the attacker's public images, kept in the view's memo.

    The attacker has model and images, so no coordinate of these is hidden from it.

    Returns:
        Gradients as rows, of as many of the first images as 1 GiB holds, and those images and their
        labels; None without public images.
    """
    if view.public is None:
        return None
    if "public" not in view.memo:
        x, y = view.public
        size = sum(gradient.numel() for gradient in view.gradients.values())
        count = max(1, min(len(x), MAX_VALUES // max(1, size)))
        rows = gradients_of(view.model, list(view.gradients), x[:count], y[:count])
        view.memo["public"] = (rows, x[:count], y[:count])
    kept: tuple[Tensor, Tensor, Tensor] = view.memo["public"]
    return kept


def gradients_of(model: nn.Module, names: list[str], x: Tensor, y: Tensor) -> Tensor:
    """The gradient of the cross-entropy of every sample by itself.

    ``torch.func`` computes many at once. Where it refuses the model (such as one that writes
    buffers or looks at values), or the first sample's gradient is not what autograd says, they are
    computed one by one.

    Returns:
        One float32 row for each sample, the parameters in the order of the names.
    """
    mine = without_records(model)
    fast: PerSample | None = _vmapped(mine, names)
    rows: list[Tensor] = []
    for xs, ys in zip(torch.split(x, CHUNK), torch.split(y, CHUNK), strict=True):
        made = _tried(fast, xs, ys) if fast is not None else None
        if made is not None and not rows and not _agrees(made[0], mine, names, xs[:1], ys[:1]):
            made = None
        if made is None:
            fast = None
            pairs = zip(torch.split(xs, 1), torch.split(ys, 1), strict=True)
            made = torch.stack([_one(mine, names, image, label) for image, label in pairs])
        rows.append(made)
    return torch.cat(rows)


def _vmapped(model: nn.Module, names: list[str]) -> PerSample:
    named = {name: p.detach() for name, p in model.named_parameters()}
    free = {name: named.pop(name) for name in names}
    buffers = dict(model.named_buffers())

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        state = {**named, **buffers, **parameters}
        return loss_of(functional_call(model, state, (image[None],)), label[None])

    per_sample = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")

    def rows(xs: Tensor, ys: Tensor) -> Tensor:
        made = per_sample(free, xs, ys)
        return torch.cat([gradient.flatten(1) for gradient in made.values()], dim=1).float()

    return rows


def _tried(fast: PerSample, xs: Tensor, ys: Tensor) -> Tensor | None:
    try:
        with warnings.catch_warnings():  # torch says that a part of it is computed one by one
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            return fast(xs, ys)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        LOGGER.info("samples' gradients one by one: torch.func says %s", str(error)[:200])
        return None


def _agrees(row: Tensor, model: nn.Module, names: list[str], x: Tensor, y: Tensor) -> bool:
    """Whether a row is what autograd gives; what is drawn at random cannot be compared."""
    first, second = (_one(model, names, x, y) for _ in range(2))
    if not torch.equal(first, second):
        return True
    return bool((row - first).norm() <= 1e-3 * first.norm() + 1e-12)


def _one(model: nn.Module, names: list[str], x: Tensor, y: Tensor) -> Tensor:
    named = dict(model.named_parameters())
    loss = loss_of(logits_of(model, x), y)
    made = torch.autograd.grad(loss, [named[name] for name in names], materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in made]).float()


def visible(view: AttackView) -> tuple[Tensor, Tensor]:
    """The view as one vector: which coordinates are visible, and all values, NaN where not."""
    flat = torch.cat([gradient.flatten() for gradient in view.gradients.values()]).float()
    return ~flat.isnan(), flat


@register_attack("learned", threat="learned", applies=lambda view: view.batch == 1)
def learned(view: AttackView, budget: AttackBudget) -> Tensor:
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
