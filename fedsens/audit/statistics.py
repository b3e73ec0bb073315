"""How far the BatchNorm statistics of guessed images are from those that are known."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedsens.audit.target import answer_of
from fedsens.audit.view import AttackView

SMALL = 1e-5  # variance, as BatchNorm itself adds

Statistics = dict[str, tuple[Tensor, Tensor]]


class StatisticsDistance:
    """Distance of the guess's BatchNorm statistics from the batch's, and its derivative.

    Yin et al. 2021 (GradInversion, arXiv 2104.07586) pull the mean and variance of each
    BatchNorm layer's inputs to the running ones. Where a client sends its running statistics
    back in plaintext, those of its own batch follow from them, and are the better target.
    """

    def __init__(self, view: AttackView) -> None:
        """Take over what is known.

        Args:
            view: the attacker's; its model is copied.
        """
        self._model = copy.deepcopy(view.model).double()
        self._known = {n: (m.double(), v.double()) for n, (m, v) in known_statistics(view).items()}

    def __call__(self, images: Tensor) -> tuple[float, Tensor]:
        """The distance, a mean over layers, relative to the variances; and its derivative.

        Args:
            images: of shape (batch, channels, height, width), double precision.

        Returns:
            The distance and its derivative by the images.
        """
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
                answer_of(self._model, images)
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
