"""Inverting Gradients (Geiping et al. 2020, arXiv 2003.14053)."""

from __future__ import annotations

from torch import Tensor

from fedsens.audit.matching import Matching, match
from fedsens.audit.registry import Effort, register_attack
from fedsens.audit.view import AttackView

SMOOTHNESS = 1e-3


@register_attack("inverting-naive", threat="naive")
def inverting_naive(view: AttackView, effort: Effort) -> Tensor:
    """Cosine distance, total variation and signed Adam, with zeros for what is encrypted."""
    return match(view, _matching(naive=True), effort)


@register_attack("inverting", threat="aware")
def inverting(view: AttackView, effort: Effort) -> Tensor:
    """Cosine distance on the visible coordinates, total variation and signed Adam."""
    return match(view, _matching(naive=False), effort)


def _matching(naive: bool) -> Matching:
    return Matching("cosine", SMOOTHNESS, signed=True, naive=naive)
