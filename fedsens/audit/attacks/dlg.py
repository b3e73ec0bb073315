"""Deep Leakage from Gradients (Zhu et al. 2019, arXiv 1906.08935) and its kin, by L-BFGS."""

from __future__ import annotations

from torch import Tensor

from fedsens.audit.matching import Matching, match
from fedsens.audit.registry import Effort, register_attack
from fedsens.audit.view import AttackView

SMOOTHNESS = 1e-4  # of the total variation, relative to the energy of the gradient


@register_attack("dlg-naive", threat="naive")
def dlg_naive(view: AttackView, effort: Effort) -> Tensor:
    """DLG that takes encrypted coordinates for zeros, as in FedML-HE's evaluation."""
    return match(view, Matching(naive=True, infer=False), effort)


@register_attack("dlg", threat="aware")
def dlg(view: AttackView, effort: Effort) -> Tensor:
    """DLG on the visible coordinates: image and label are guessed together."""
    return match(view, Matching(infer=False), effort)


@register_attack("idlg", threat="aware")
def idlg(view: AttackView, effort: Effort) -> Tensor:
    """IDLG (Zhao et al. 2020, arXiv 2001.02610): the label is read off the last layer."""
    return match(view, Matching(), effort)


@register_attack("dlg-tv", threat="aware")
def dlg_tv(view: AttackView, effort: Effort) -> Tensor:
    """IDLG with a total-variation prior: images are smooth."""
    return match(view, Matching(smoothness=SMOOTHNESS), effort)
