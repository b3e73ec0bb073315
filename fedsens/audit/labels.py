"""Labels from the gradient of the last layer."""

from __future__ import annotations

import torch
from torch import Tensor

from fedsens.audit.view import AttackView


def label_scores(view: AttackView) -> Tensor | None:
    """A score of each class, lower where more images have it (Zhao et al. 2020, iDLG).

    With cross-entropy the gradient by the logits is softmax - onehot, so that of the last layer's
    bias is negative for the classes of the images only. Where the bias is masked, the visible
    weights of the class's row say the same, up to the sign of the layer's inputs, which follow a
    sigmoid or ReLU as a rule.

    Args:
        view: the attacker's.

    Returns:
        Vector of ``classes`` scores, NaN for classes of which nothing is visible; None where there
        is no such layer, or nothing of it is visible.
    """
    heads = [name for name, g in view.gradients.items() if g.shape[:1] == (view.classes,)]
    if not heads:
        return None
    bias = next((n for n in reversed(heads) if view.gradients[n].ndim == 1), None)
    weight = next((n for n in reversed(heads) if view.gradients[n].ndim == 2), None)
    scores = torch.full((view.classes,), torch.nan)
    if weight is not None:
        scores = view.gradients[weight].nanmean(dim=1)
        size = scores.abs().nan_to_num().max().clamp_min(1e-30)
        scores = scores / size
    if bias is not None:
        known = view.gradients[bias]
        size = known.abs().nan_to_num().max().clamp_min(1e-30)
        scores = torch.where(known.isnan(), scores, known / size)
    return None if scores.isnan().all() else scores


def infer_label(view: AttackView) -> int | None:
    """The label of a single image: the class with the lowest score.

    A class of which nothing is visible is chosen only if every visible one has a positive score.

    Args:
        view: the attacker's, of one image.

    Returns:
        The class; None where nothing tells.
    """
    scores = label_scores(view)
    if scores is None:
        return None
    hidden = scores.isnan().nonzero().flatten()
    lowest = int(scores.nan_to_num(torch.inf).argmin())
    if scores[lowest] >= 0 and len(hidden):
        return int(hidden[0]) if len(hidden) == 1 else None
    return lowest
