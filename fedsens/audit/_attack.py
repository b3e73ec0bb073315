"""What a curious server has of one client's update, and attacks on it by name.

An attack is one decorated function from what the attacker has to images::

    @register_attack("blank", threat="aware")
    def blank(view: AttackView, budget: AttackBudget) -> Tensor:
        return torch.full((view.batch, *view.shape), 0.5)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedsens._extensions import Registry
from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask, with_nan

Threat = Literal["naive", "aware", "analytic", "learned", "deviating"]
Kind = Literal["images", "tokens"]
CHEAP: tuple[Threat, ...] = ("analytic", "deviating", "learned", "aware", "naive")  # first


@dataclass(frozen=True)
class AttackView:
    """The attacker's knowledge. Masked coordinates are NaN: whoever reads one spoils the result.

    Attributes:
        model: the global model that the client started from, in the mode it trains in.
        gradients: name of each trained parameter to its gradient, NaN where it is encrypted.
        shape: of one sample: channels, height, width; or the number of tokens.
        classes: outputs of the model.
        batch: how many samples the update is from.
        public: samples of the same kind and their labels, if the attacker has any.
        noise: standard deviation of the noise in each visible gradient, as far as it is known: the
            noise's relative size is public, and the size of the update is estimated from it.
        statistics: name of each BatchNorm layer to the mean and the variance of the update's batch
            as far as the running statistics that were sent back tell them, NaN where not.
        memo: what attacks keep from one view to the next of the same model and public images.
    """

    model: nn.Module
    gradients: Mapping[str, Tensor]
    shape: tuple[int, ...]
    classes: int
    batch: int
    public: tuple[Tensor, Tensor] | None = None
    noise: float = 0.0
    statistics: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    memo: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def parameters(self) -> list[Tensor]:
        """The model's trained parameters, in the order of the gradients."""
        named = dict(self.model.named_parameters())
        return [named[name] for name in self.gradients]


def view_of_update(
    model: nn.Module,
    before: Mapping[str, NDArray[Any]],
    plain: Mapping[str, NDArray[Any]] | None,
    mask: EncryptionMask,
    layout: ParameterLayout,
    *,
    step: float,
    shape: tuple[int, ...],
    classes: int,
    batch: int,
    local_steps: int = 1,
) -> AttackView:
    """Build the view from the plaintext remainder of a client's answer.

    The gradient is (before - after) / step, exact for one step of SGD without momentum and an
    average over several.
    """
    if plain is None:
        after = {name: np.full_like(array, np.nan, float) for name, array in before.items()}
    else:
        after = with_nan(plain, layout, mask)
    gradients = {
        name: torch.from_numpy((before[name] - after[name]) / step).to(parameter.dtype)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    statistics = batch_statistics(model, before, after, local_steps)
    return AttackView(model, gradients, shape, classes, batch, statistics=statistics)


def batch_statistics(
    model: nn.Module,
    before: Mapping[str, NDArray[Any]],
    after: Mapping[str, NDArray[Any]],
    steps: int,
) -> dict[str, tuple[Tensor, Tensor]]:
    """What running statistics tell about the batches that moved them.

    After one step in training mode they are (1 - m) old + m batch; after s steps the average of
    the batches has the weight 1 - (1 - m)^s.
    """
    found = {}
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm) or not module.training or module.momentum is None:
            continue
        share = 1 - (1 - module.momentum) ** steps
        names = [f"{name}.running_{what}".lstrip(".") for what in ("mean", "var")]
        if share > 0 and all(each in before for each in names):
            pairs = [torch.from_numpy(after[n] - (1 - share) * before[n]) / share for n in names]
            found[name] = pairs[0].float(), pairs[1].float()
    return found


def view_of_gradient(
    model: nn.Module,
    gradients: Mapping[str, Tensor],
    mask: EncryptionMask,
    layout: ParameterLayout,
    shape: tuple[int, ...],
    classes: int,
    batch: int,
) -> AttackView:
    """Build the view of a single gradient, as if one step of SGD had been sent.

    Args:
        model: the model that the gradient is of.
        gradients: name to gradient, whole.
        mask: which coordinates are encrypted.
        layout: of the model's state.
        shape: of one image.
        classes: number of them.
        batch: how many images the gradient is from.

    Returns:
        The view.
    """
    entries = {entry.name: entry for entry in layout.entries}
    hidden = {name: torch.from_numpy(mask.of(entries[name]).copy()) for name in gradients}
    seen = {name: g.detach().masked_fill(hidden[name], torch.nan) for name, g in gradients.items()}
    return AttackView(model, seen, shape, classes, batch)


@dataclass(frozen=True)
class AttackBudget:
    """How hard an attack tries.

    Attributes:
        steps: iterations of each start.
        starts: from so many random images; the attack's own loss chooses.
        generator: of whatever is random.
    """

    steps: int
    starts: int
    generator: torch.Generator


Run = Callable[[AttackView, AttackBudget], Tensor]


@dataclass(frozen=True)
class Attack:
    """A registered attack.

    Attributes:
        name: what users write to choose it.
        threat: ``naive`` takes encrypted coordinates for zeros, ``aware`` leaves them out,
            ``analytic`` solves for the input of a layer, ``learned`` has public images,
            ``deviating`` has sent out another model.
        run: from the attacker's view to images of shape (batch, channels, height, width) in [0, 1],
            or to booleans of shape (vocabulary,): which tokens occur.
        kind: of the samples that it recovers.
        applies: whether there is anything for it to attack in a view with nothing encrypted.
    """

    name: str
    threat: Threat
    run: Run
    kind: Kind = "images"
    applies: Callable[[AttackView], bool] = lambda view: True


_attacks = Registry[Attack]("attack", "fedsens.attacks")


def register_attack(
    name: str,
    *,
    threat: Threat,
    kind: Kind = "images",
    applies: Callable[[AttackView], bool] = lambda view: True,
) -> Callable[[Run], Run]:
    """Register the decorated function as an attack.

    Args:
        name: what users write to choose it.
        threat: what the attacker knows.
        kind: of the samples that it recovers.
        applies: whether to try it by default, from a view with nothing encrypted.

    Returns:
        The decorator; it returns the function unchanged.
    """

    def register(run: Run) -> Run:
        _attacks.add(name, Attack(name, threat, run, kind, applies), run)
        return run

    return register


def attack_names() -> list[str]:
    """All registered names, cheap attacks first: what they recover no other has to."""
    _load()
    return sorted(_attacks, key=lambda name: CHEAP.index(_attacks[name].threat))


def get_attack(name: str) -> Attack:
    """A registered attack.

    Args:
        name: its name.

    Returns:
        The attack.

    Raises:
        ConfigurationError: no attack has the name; of the registry.
    """  # noqa: DOC502
    _load()
    return _attacks[name]


def _load() -> None:
    """Register the attacks of fedsens."""
    for name in ("analytic", "tokens", "learned", "matching"):
        import_module(f"fedsens.audit._{name}")
