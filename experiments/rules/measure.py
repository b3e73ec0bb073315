"""What is measured of one model: both rules, their variants, and cheaper scores beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedsens.data import Dataset
from fedsens.sensitivity import SensitivityMap, map_overlap, sensitivity_map, staleness

BATCH = 64
# images of the variants, which are compared with the rule `vector` on the same images
FEW = 256
VARIANTS: dict[str, dict[str, Any]] = {
    "vector, norm L1": {"norm": "l1"},
    "vector, norm Linf": {"norm": "linf"},
    "vector, center label": {"center": "label"},
    "vector, center uniform": {"center": "uniform"},
    "vector, center none": {"center": "none"},
}

Figures = dict[str, float]


@dataclass(frozen=True)
class Maps:
    """The maps of one model by both rules, on the same images.

    Attributes:
        vector: rule ``vector``, exact.
        true_label: rule ``true_label``.
    """

    vector: SensitivityMap
    true_label: SensitivityMap

    def named(self) -> dict[str, SensitivityMap]:
        """Name of the rule to its map."""
        return {"vector": self.vector, "true_label": self.true_label}


def make_maps(model: nn.Module, images: Dataset, seed: int) -> Maps:
    """Make the maps of both rules, with their halves.

    Args:
        model: a classifier.
        images: what to make the maps from.
        seed: of the halves.

    Returns:
        The maps.
    """
    batches = images.batches(BATCH)
    vector, true_label = (
        sensitivity_map(model, batches, rule=rule, halves=True, seed=seed)
        for rule in ("vector", "true_label")
    )
    return Maps(vector, true_label)


def compare(model: nn.Module, images: Dataset, maps: Maps, seed: int) -> Figures:
    """Overlaps of the top 10 % unless the name says otherwise, means, and shares.

    Args:
        model: a classifier.
        images: what the maps were made from.
        maps: the model's maps.
        seed: of the probes, of the noise and of the shuffled labels.

    Returns:
        Name to figure.
    """
    figures = {
        f"rules, top {ratio:.0%}": map_overlap(maps.vector, maps.true_label, ratio)
        for ratio in (0.01, 0.1, 0.3)
    }
    others = {"|mean gradient|": mean_gradient(model, images), "|weight|": magnitude(model)}
    for rule, smap in maps.named().items():
        figures |= {f"{rule}, {name}": map_overlap(smap, other) for name, other in others.items()}
        figures[f"{rule}, halves"] = smap.half_overlap()
        figures[f"{rule}, mean S"] = _mean(smap)
    figures["vector, zeros"] = _zeros(maps.vector)
    figures["gradient in a tenth of the images"] = hard_share(model, images)
    generator = torch.Generator().manual_seed(seed)
    probed = sensitivity_map(model, images.batches(BATCH), rows=1, generator=generator)
    figures["vector, 1 probe"] = map_overlap(maps.vector, probed)
    shuffled = _shuffled(images, generator).batches(BATCH)
    wrong = sensitivity_map(model, shuffled, rule="true_label")
    figures["true_label, shuffled labels"] = map_overlap(maps.true_label, wrong)
    return figures | _variants(model, images, maps, generator)


def drift(maps: Maps, first: Maps, before: Maps) -> Figures:
    """How far the maps of earlier models miss what the present ones select.

    Args:
        maps: of the model as it is.
        first: of the initial model.
        before: of the stage before.

    Returns:
        Name to figure.
    """
    figures = {}
    for rule, smap in maps.named().items():
        figures[f"{rule}, stale since init"] = staleness(first.named()[rule], smap)
        figures[f"{rule}, stale since last"] = staleness(before.named()[rule], smap)
        figures[f"{rule}, mean S / init"] = _mean(smap) / _mean(first.named()[rule])
    return figures


def mean_gradient(model: nn.Module, images: Dataset) -> SensitivityMap:
    """|gradient of the mean loss|: the order in which samples are added up and made positive.

    Args:
        model: a classifier.
        images: labelled images.

    Returns:
        The score of each parameter, as a map.
    """
    parameters = dict(model.named_parameters())
    sums = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for x, y in images.batches(BATCH):
        loss = cross_entropy(model(x), y, reduction="sum")
        for name, grad in zip(sums, torch.autograd.grad(loss, [*parameters.values()]), strict=True):
            sums[name] += grad
    return SensitivityMap({name: value.abs() for name, value in sums.items()}, len(images))


def magnitude(model: nn.Module) -> SensitivityMap:
    """|weight|.

    Args:
        model: any model.

    Returns:
        The score of each parameter, as a map.
    """
    return SensitivityMap({name: p.detach().abs() for name, p in model.named_parameters()}, 1)


def hard_share(model: nn.Module, images: Dataset, share: float = 0.1) -> float:
    """How much of the gradient comes from the images that the model fits worst.

    Args:
        model: a classifier.
        images: labelled images.
        share: of the images, those with the largest |softmax(z) - y|.

    Returns:
        Their part of the sum of |softmax(z) - y|, the norm of the gradient by the logits.
    """
    with torch.inference_mode():
        logits = torch.cat([model(x) for x, _ in images.batches(BATCH)])
    residuals = torch.softmax(logits.double(), 1)
    residuals[torch.arange(len(images)), images.y] -= 1
    norms: Tensor = residuals.norm(dim=1).sort(descending=True).values
    return float(norms[: round(share * len(images))].sum() / norms.sum())


def _shuffled(images: Dataset, generator: torch.Generator) -> Dataset:
    order = torch.randperm(len(images), generator=generator)
    return Dataset(images.x, images.y[order], images.classes)


def _variants(model: nn.Module, images: Dataset, maps: Maps, generator: torch.Generator) -> Figures:
    batches = images.batches(BATCH, FEW)
    usual = sensitivity_map(model, batches)
    made = {name: sensitivity_map(model, batches, **options) for name, options in VARIANTS.items()}
    noise = [(torch.rand(x.shape, generator=generator), y) for x, y in batches]
    made["vector, noise for images"] = sensitivity_map(model, noise)
    figures = {name: map_overlap(usual, smap) for name, smap in made.items()}
    return figures | {f"vector, {FEW} images": map_overlap(usual, maps.vector)}


def _mean(smap: SensitivityMap) -> float:
    return float(np.mean(_flat(smap)))


def _zeros(smap: SensitivityMap) -> float:
    return float(np.mean(_flat(smap) == 0))


def _flat(smap: SensitivityMap) -> Any:
    return np.concatenate([value.reshape(-1).double().numpy() for value in smap.mean().values()])
