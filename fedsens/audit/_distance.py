"""How far guessed images are from what was seen, and which way to go.

By their gradient, and by the statistics of their batch in BatchNorm layers.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax
from torch.nn.modules.batchnorm import _BatchNorm

from fedsens.audit._attack import AttackView
from fedsens.audit._target import logits_of

Distance = Literal["euclidean", "cosine"]
STEP = 1e-6  # of the parameters, in norm: the square root of double precision and a margin
TINY = 1e-150
SMALL = 1e-5  # variance, as BatchNorm itself adds

Statistics = dict[str, tuple[Tensor, Tensor]]


class GradientDistance:
    """Distance between gradients as a function of the images and labels behind one of them.

    With L the training loss, G(x) = dL/dw the gradient of the images x and D(G) its distance,
    dD/dx = d/dx <G(x), v> for v = dD/dG, which is the derivative of dL/dx along v in the
    parameters: (dL/dx (w + h v) - dL/dx (w)) / h. Two ordinary backward passes in double precision
    take the place of a second derivative of the network, at a third of its time.

    Encrypted coordinates have no part in D or v unless they are taken for zeros.

    Attributes:
        blind: whether nothing but zeros was seen.
    """

    def __init__(self, view: AttackView, distance: Distance, naive: bool = False) -> None:
        """Take over what was seen.

        Args:
            view: the attacker's; its model is copied.
            distance: ``euclidean``, squared and relative to the energy of what was seen; or
                ``cosine``, 1 - the cosine of the angle.
            naive: take encrypted coordinates for zeros instead of leaving them out.
        """
        seen = torch.cat([gradient.flatten() for gradient in view.gradients.values()]).double()
        self._seen = seen.nan_to_num()
        self._known = torch.ones_like(seen) if naive else (~seen.isnan()).double()
        self._energy = max(float(self._seen.square().sum()), TINY)
        self.blind = not bool(self._seen.any())
        self._distance = distance
        self._model, self._weights = _copy(view)
        self._moved, self._moved_weights = _copy(view)
        self._parameters = _trained(self._model, view)

    def __call__(self, images: Tensor, logits: Tensor) -> tuple[float, Tensor, Tensor]:
        """The distance and its derivatives.

        Args:
            images: of shape (batch, channels, height, width), double precision.
            logits: whose softmax is taken for the labels, of shape (batch, classes).

        Returns:
            The distance, its derivative by the images, and that by the logits.
        """
        *made, by_images, by_logits = _derivatives(self._model, self._parameters, images, logits)
        distance, along = self._compare(torch.cat([gradient.flatten() for gradient in made]))
        length = max(float(along.norm()), TINY)
        torch.add(self._weights, along, alpha=STEP / length, out=self._moved_weights)
        moved_images, moved_logits = _derivatives(self._moved, [], images, logits)
        factor = length / STEP
        return distance, (moved_images - by_images) * factor, (moved_logits - by_logits) * factor

    def _compare(self, made: Tensor) -> tuple[float, Tensor]:
        made = made * self._known
        if self._distance == "euclidean":
            away = made - self._seen
            return float(away.square().sum()) / self._energy, (2 / self._energy) * away
        lengths = max(float(made.norm()) * self._energy**0.5, TINY)
        cosine = float(made @ self._seen) / lengths
        square = max(float(made.square().sum()), TINY)
        return 1 - cosine, (cosine / square) * made - self._seen / lengths


def _copy(view: AttackView) -> tuple[nn.Module, Tensor]:
    """A copy of the model whose trained parameters lie in one vector, and the vector."""
    model = copy.deepcopy(view.model).double()
    parameters = _trained(model, view)
    weights = torch.cat([parameter.detach().flatten() for parameter in parameters])
    parts = torch.split(weights, [parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.data = part.view_as(parameter)
    return model, weights


def _trained(model: nn.Module, view: AttackView) -> list[Tensor]:
    named = dict(model.named_parameters())
    return [named[name] for name in view.gradients]


def _derivatives(
    model: nn.Module, parameters: list[Tensor], images: Tensor, logits: Tensor
) -> tuple[Tensor, ...]:
    """Of the loss by parameters, images and logits; what is random in the model is the same."""
    images, logits = images.detach().requires_grad_(), logits.detach().requires_grad_()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        answer = logits_of(model, images)
    loss = -(torch.softmax(logits, dim=1) * log_softmax(answer, dim=1)).sum(dim=1).mean()
    wanted = [*parameters, images, logits]
    return torch.autograd.grad(loss, wanted, materialize_grads=True)


class StatisticsDistance:
    """Distance of the guess's BatchNorm statistics from the batch's, and its derivative.

    Yin et al. 2021 (GradInversion, arXiv 2104.07586) pull the mean and variance of each
    BatchNorm layer's inputs to the running ones. Where a client sends its running statistics
    back in plaintext, those of its own batch follow from them, and are the better target.
    """

    def __init__(self, view: AttackView) -> None:
        """Copy the view's model and take over what is known of the statistics."""
        self._model = copy.deepcopy(view.model).double()
        self._known = {n: (m.double(), v.double()) for n, (m, v) in known_statistics(view).items()}

    def __call__(self, images: Tensor) -> tuple[float, Tensor]:
        """The mean distance of a layer, relative to the variances; its derivative by the images."""
        images = images.detach().requires_grad_()
        parts: list[Tensor] = []
        hooks = [
            module.register_forward_pre_hook(_comparing(*self._known[name], parts))
            for name, module in self._model.named_modules()
            if name in self._known
        ]
        try:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(0)
                logits_of(self._model, images)
        finally:
            for hook in hooks:
                hook.remove()
        loss = torch.stack(parts).mean()
        (slope,) = torch.autograd.grad(loss, [images])
        return float(loss.detach()), slope


def known_statistics(view: AttackView) -> Statistics:
    """Mean and variance of each BatchNorm layer's inputs, as far as an attacker knows them.

    Args:
        view: the attacker's.

    Returns:
        Those that the update tells, and a trained model's running ones where it does not; NaN for
        a channel of which nothing is known. Layers of which nothing is known are left out.
    """
    found: Statistics = {}
    for name, module in view.model.named_modules():
        if not isinstance(module, _BatchNorm) or module.running_mean is None:
            continue
        assert module.running_var is not None
        prior = torch.stack([module.running_mean, module.running_var]).float()
        if module.num_batches_tracked is not None and int(module.num_batches_tracked) == 0:
            prior = torch.full_like(prior, torch.nan)  # nobody has seen an image yet
        seen = torch.stack(view.statistics[name]) if name in view.statistics else prior
        known = torch.where(seen.isnan(), prior, seen)
        if not known.isnan().any(dim=0).all():
            found[name] = known[0], known[1].clamp_min(0)
    return found


def _comparing(mean: Tensor, variance: Tensor, parts: list[Tensor]) -> Any:
    known = ~(mean.isnan() | variance.isnan())

    def compare(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        values = given[0].transpose(0, 1).flatten(1)[known]
        scale = variance[known] + SMALL
        off = (values.mean(dim=1) - mean[known]).square() / scale
        spread = values.var(dim=1, correction=min(1, values.shape[1] - 1))
        parts.append(off.mean() + ((spread - variance[known]) / scale).square().mean())

    return compare
