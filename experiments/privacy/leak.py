"""One attack on one image under one mask, and how much of the image it recovers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from experiments.cases import Row
from experiments.privacy.fidelity import psnr, uqi, vif
from fedsens.audit import (
    AttackBudget,
    AttackView,
    get_attack,
    identified,
    prior_reconstruction,
    ssim,
    view_of_gradient,
)
from fedsens.data import Dataset, load_dataset
from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask, get_policy, select_mask
from fedsens.sensitivity import SensitivityMap, sensitivity_map

RESERVED = 64  # images that only ever are victims
Images = Annotated[int, typer.Option(min=1, max=RESERVED, help="Images to attack.")]
Steps = Annotated[int, typer.Option(min=1, help="Of an attack's optimiser.")]
CALIBRATION, CANDIDATES, PUBLIC = 256, 500, 1000  # of the others: for maps, to tell from, known
GUESS = "guess"  # no attack: the mean public image of the victim's class


@dataclass(frozen=True)
class Scene:
    """Images to attack, and what else there is.

    Attributes:
        victims: 64 images.
        others: all further images.
    """

    victims: Dataset
    others: Dataset


def scene_of(data: str, seed: int = 0) -> Scene:
    """Draw the victims of a data set.

    Args:
        data: what ``load_dataset`` reads.
        seed: of the order.

    Returns:
        The scene.
    """
    images = load_dataset(data)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).numpy()
    return Scene(images.subset(order[:RESERVED]), images.subset(order[RESERVED:]))


def masks_for(model: nn.Module, scene: Scene) -> Callable[[str, float], EncryptionMask]:
    """Masks from maps of 256 images that are not attacked; the maps are made once.

    Args:
        model: whose parameters are masked, and sensitive now.
        scene: the images.

    Returns:
        From a registered policy and a ratio to the mask; ``gradient`` has the map of the rule
        ``true_label``.
    """
    layout = ParameterLayout.from_state_dict(model.state_dict())

    @cache
    def scores(rule: str) -> SensitivityMap:
        return sensitivity_map(model, scene.others.batches(64, CALIBRATION), rule=rule)

    @cache
    def mask(policy: str, ratio: float) -> EncryptionMask:
        if "scores" not in get_policy(policy).needs:
            return select_mask(None, layout, policy, ratio)
        rule = "true_label" if policy == "gradient" else "vector"
        return select_mask(scores(rule), layout, policy, ratio)

    return mask


def attack_image(
    model: nn.Module,
    scene: Scene,
    mask: EncryptionMask,
    attack: str,
    image: int,
    steps: int,
    memo: dict[Any, Any] | None = None,
) -> Row:
    """Attack the gradient of one image.

    Args:
        model: that the gradient is of.
        scene: the images.
        mask: which coordinates are encrypted.
        attack: a registered one, or ``guess``.
        image: number of the victim.
        steps: of the attack's optimiser, from one start.
        memo: what attacks keep for the next image; the same one for the same model only.

    Returns:
        SSIM, UQI, VIF, PSNR, whether the image is told from 500 others, and CPU seconds.
    """
    true, label = scene.victims.x[image], scene.victims.y[image]
    started = time.process_time()
    if attack == GUESS:
        found = prior_reconstruction(int(label), scene.others.x, scene.others.y)
    else:
        budget = AttackBudget(steps, 1, torch.Generator().manual_seed(image))
        view = _view(model, scene, mask, image)
        kept: dict[Any, Any] = {} if memo is None else memo
        found = get_attack(attack).run(replace(view, memo=kept), budget)[0]
    seconds = time.process_time() - started
    return _figures(found, true, scene.others.x[:CANDIDATES]) | {"seconds": round(seconds, 2)}


def _figures(found: Tensor, true: Tensor, others: Tensor) -> Row:
    measures = {"ssim": ssim, "uqi": uqi, "vif": vif, "psnr": psnr}
    figures = {name: round(measure(found, true), 5) for name, measure in measures.items()}
    return figures | {"found": int(identified(found, true, others))}


def _view(model: nn.Module, scene: Scene, mask: EncryptionMask, image: int) -> AttackView:
    x, y = scene.victims.x[image : image + 1], scene.victims.y[image : image + 1]
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(cross_entropy(model(x), y), list(named.values()))
    layout = ParameterLayout.from_state_dict(model.state_dict())
    seen = dict(zip(named, gradients, strict=True))
    channels, height, width = x.shape[1:]
    outputs = int(model(x).shape[1])
    view = view_of_gradient(model, seen, mask, layout, (channels, height, width), outputs, 1)
    return replace(view, public=(scene.others.x[:PUBLIC], scene.others.y[:PUBLIC]))
