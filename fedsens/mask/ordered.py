"""Policies that take whole layers in an order, and let scores decide only where one does not fit.

``fedsens audit`` is why they exist: against attackers that leave encrypted coordinates out, where
the encrypted ones are matters more than how many they are (docs/explanation/audit.md).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fedsens.layout import ParameterLayout
from fedsens.mask.kinds import convolutions, is_bias, is_embedding, layers, module_of
from fedsens.mask.registry import PolicyInput, register_policy
from fedsens.topk import top_k


@register_policy("closure", needs=("scores",))
def closure(context: PolicyInput) -> NDArray[np.bool_]:
    """What single tensors give away first, then the highest scores.

    In this order: the last layer (labels are read off it), the first two convolutions or, without
    any, the first layer (they see the image), embeddings (their rows are the tokens), biases (they
    give the scale of an analytic inversion), and the highest scores of what is left. First and
    last are by definition order, among the layers that are not forced.
    """
    layout = context.layout
    names = layers(layout)
    seeing = convolutions(layout)[:2] or names[:1]
    return filled(
        context,
        [
            _tensors(layout, names[-1:]),
            _tensors(layout, seeing),
            {entry.name for entry in layout.entries if is_embedding(entry, layout)},
            {entry.name for entry in layout.entries if is_bias(entry)},
            {entry.name for entry in layout.entries},
        ],
    )


@register_policy("front", needs=("scores",))
def front(context: PolicyInput) -> NDArray[np.bool_]:
    """Tensor after tensor in the order of definition; the highest scores of the last one.

    The first layers see the image itself. Where the definition does not follow the computation,
    force the layers that see the input.
    """
    return filled(context, ({entry.name} for entry in context.layout.entries))


def filled(context: PolicyInput, groups: Iterable[set[str]]) -> NDArray[np.bool_]:
    """Select k coordinates group by group, by scores within the one that does not fit.

    Masks of growing k contain one another.

    Args:
        context: of the policy.
        groups: names of tensors, the most urgent first; what an earlier group has counts once.

    Returns:
        Boolean vector with k true entries, or fewer if the groups do not hold as many.
    """
    selected = np.zeros(context.layout.size, np.bool_)
    missing, taken = context.k, set[str]()
    for group in groups:
        entries = [e for e in context.layout.entries if e.name in group - taken]
        size = sum(entry.size for entry in entries)
        open_ = np.zeros_like(selected) if size > missing else selected
        for entry in entries:
            open_[entry.slice] = True
        if size > missing:
            open_[open_] = top_k(context.scores[open_], missing)
            return selected | open_
        missing -= size
        taken |= group
    return selected


def _tensors(layout: ParameterLayout, modules: list[str]) -> set[str]:
    return {entry.name for entry in layout.entries if module_of(entry.name) in modules}
