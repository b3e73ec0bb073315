"""Inverting Gradients (Geiping et al. 2020, arXiv 2003.14053), and GradInversion's additions."""

from __future__ import annotations

from torch import Tensor

from fedsens.audit.matching import Matching, match
from fedsens.audit.registry import Effort, register_attack
from fedsens.audit.statistics import known_statistics
from fedsens.audit.view import AttackView

SMOOTHNESS = 1e-3
STATISTICS = 1e-2  # weight of the distance between BatchNorm statistics
GROUP, CONSISTENCY = 4, 1e-2  # guesses side by side, and the pull to their mean


@register_attack("inverting-naive", threat="naive")
def inverting_naive(view: AttackView, effort: Effort) -> Tensor:
    """Cosine distance, total variation and signed Adam, with zeros for what is encrypted."""
    return match(view, Matching("cosine", SMOOTHNESS, signed=True, naive=True), effort)


@register_attack("inverting", threat="aware")
def inverting(view: AttackView, effort: Effort) -> Tensor:
    """Cosine distance on the visible coordinates, total variation and signed Adam."""
    return match(view, Matching("cosine", SMOOTHNESS, signed=True), effort)


def _has_statistics(view: AttackView) -> bool:
    return bool(known_statistics(view))


@register_attack("inverting-bn", threat="aware", applies=_has_statistics)
def inverting_bn(view: AttackView, effort: Effort) -> Tensor:
    """The same, pulled to BatchNorm statistics: the batch's own where the update tells them.

    Without any that are known it is ``inverting``.
    """
    weight = STATISTICS if _has_statistics(view) else 0.0
    return match(view, Matching("cosine", SMOOTHNESS, signed=True, statistics=weight), effort)


@register_attack("group", threat="aware", applies=lambda view: view.batch > 1)
def group(view: AttackView, effort: Effort) -> Tensor:
    """GradInversion (Yin et al. 2021, arXiv 2104.07586): several guesses, pulled to their mean.

    With BatchNorm statistics where they are known; images are not registered to each other before
    the mean is taken, as they are small here.
    """
    weight = STATISTICS if _has_statistics(view) else 0.0
    matching = Matching(
        "cosine", SMOOTHNESS, signed=True, statistics=weight, group=GROUP, consistency=CONSISTENCY
    )
    return match(view, matching, effort)
