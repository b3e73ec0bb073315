"""Mask policies: the registry, and those that fedsens brings. One is one decorated function.

::

    @register_policy("saliency", needs=("scores", "weights"))
    def saliency(context: PolicyInput) -> NDArray[np.bool_]:
        return top_k(context.scores * np.abs(context.weights), context.k)

Forced layers, the number k, the encoding and the checks of the scores (P of them, all finite and
non-negative) are the work of :func:`fedsens.mask.select_mask`, so a policy answers one question:
which k of these coordinates.

Two policies take whole layers in an order, and let scores decide only where one does not fit.
``fedsens audit`` is why they exist: against attackers that leave encrypted coordinates out, where
the encrypted ones are matters more than how many they are (docs/explanation/audit.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedsens._extensions import Registry
from fedsens._topk import top_k
from fedsens.errors import ConfigurationError
from fedsens.layout import Entry, ParameterLayout
from fedsens.mask._layers import (
    STATISTICS,
    convolutions,
    is_bias,
    is_embedding,
    layers,
    module_of,
)

Need = Literal["scores", "weights"]


@dataclass(frozen=True, eq=False)
class PolicyInput:
    """What a policy may look at: P coordinates that are still free, of which it selects k.

    Attributes:
        layout: the tensors that are not forced; P is its size.
        k: how many coordinates to select, in ``[0, P]``.
        seed: non-negative seed for policies that draw at random.
        scores: P finite scores of at least 0, read-only; empty unless the policy needs them.
        weights: P finite parameter values, read-only; empty unless the policy needs them.
    """

    layout: ParameterLayout
    k: int
    seed: int = 0
    scores: NDArray[Any] = field(default_factory=lambda: np.empty(0))
    weights: NDArray[Any] = field(default_factory=lambda: np.empty(0))


Select = Callable[[PolicyInput], NDArray[np.bool_]]


@dataclass(frozen=True)
class Policy:
    """A registered policy.

    Attributes:
        name: what users write.
        select: maps the input to a boolean vector of length P with exactly k true entries.
        needs: the optional inputs that must be there.
        ratio: the policy's own ratio, which replaces the user's; None to use the user's.
    """

    name: str
    select: Select
    needs: tuple[Need, ...] = ()
    ratio: float | None = None


_policies = Registry[Policy]("mask policy", "fedsens.policies")
RENAMED = {"closure": "critical_layers", "front": "first_layers"}


def register_policy(
    name: str, *, needs: tuple[Need, ...] = (), ratio: float | None = None
) -> Callable[[Select], Select]:
    """Register the decorated function as a mask policy.

    Args:
        name: what users write to choose it.
        needs: ``("scores",)``, ``("weights",)`` or both, if the policy cannot work without.
        ratio: set it if the policy has a ratio of its own, as ``all`` and ``none`` have.

    Returns:
        The decorator; it returns the function unchanged.

    Raises:
        ConfigurationError: another policy has the name already.
    """  # noqa: DOC502 - of the registry

    def register(select: Select) -> Select:
        _policies.add(name, Policy(name, select, needs, ratio), select)
        return select

    return register


def get_policy(name: str) -> Policy:
    """Look a policy up.

    Args:
        name: its registered name.

    Returns:
        The policy.

    Raises:
        ConfigurationError: no policy has the name; the text lists those that exist, or tells the
            new name of one that was renamed.
    """
    if name in RENAMED and name not in policy_names():
        raise ConfigurationError(
            f"expected a mask policy by its present name, got {name!r}; write {RENAMED[name]!r}"
        )
    return _policies[name]


def policy_names() -> tuple[str, ...]:
    """The registered names, sorted."""
    return tuple(sorted(_policies))


@register_policy("sensitivity", needs=("scores",))
def sensitivity(context: PolicyInput) -> NDArray[np.bool_]:
    """The k highest scores of the whole model: FedML-HE's mask (arXiv 2303.10837).

    Expects a parameter-label sensitivity map, of either rule. With the ``vector`` rule and a
    usual initialisation a small ratio can fall on the last layer alone: see ``layerwise`` and
    forced layers.
    """
    return top_k(context.scores, context.k)


@register_policy("gradient", needs=("scores",))
def gradient(context: PolicyInput) -> NDArray[np.bool_]:
    """The k largest absolute gradients of the whole model.

    The same rule as ``sensitivity`` on another map: it expects |gradient|, which for
    cross-entropy is the sensitivity map of rule ``true_label``. Nothing can tell the two maps
    apart by their numbers, so with a ``vector`` map this is the ``sensitivity`` policy.
    """
    return top_k(context.scores, context.k)


@register_policy("layerwise", needs=("scores",))
def layerwise(context: PolicyInput) -> NDArray[np.bool_]:
    """The highest scores within each tensor, whose quota is proportional to its size.

    Quotas are k * size / P rounded to integers by largest remainder, so they sum to k and each
    is within 1 of proportional. A tensor of few parameters can get none at a small ratio.
    """
    selected = np.zeros(context.layout.size, np.bool_)
    for entry, quota in zip(
        context.layout.entries, _quotas(context.layout, context.k), strict=True
    ):
        selected[entry.slice] = top_k(context.scores[entry.slice], quota)
    return selected


@register_policy("layer_sensitivity", needs=("scores",))
def layer_sensitivity(context: PolicyInput) -> NDArray[np.bool_]:
    """Whole layers, the most sensitive first, until k (Mo et al., arXiv 2010.08762).

    A layer's score is the root mean square of its coordinates' scores, without running statistics:
    the layer's own norm for a map that :func:`fedsens.sensitivity.layer_sensitivity` makes. The
    last layer to fit is cut at k, its highest scores first. Layers are the tensors of one module,
    told by their names.
    """
    layers: dict[str, list[Entry]] = {}
    for entry in context.layout.entries:
        layers.setdefault(entry.name.rpartition(".")[0] or entry.name, []).append(entry)
    levels = np.zeros(context.layout.size)
    ranked = sorted(layers.values(), key=lambda entries: _level(context.scores, entries))
    for rank, entries in enumerate(ranked):
        for entry in entries:
            levels[entry.slice] = rank
    # By the layer's rank, then within a layer by score; lexsort's last key is the first to count.
    order = np.lexsort((-context.scores, -levels))
    selected = np.zeros(context.layout.size, np.bool_)
    selected[order[: context.k]] = True
    return selected


def _level(scores: NDArray[np.generic], entries: list[Entry]) -> float:
    # running statistics have no gradient, so a map has 0 for them, which says nothing of the layer
    counted = [entry for entry in entries if not entry.name.endswith(STATISTICS)] or entries
    own = np.concatenate([scores[entry.slice].astype(np.float64) for entry in counted])
    return float(np.sqrt(np.square(own).mean())) if own.size else 0.0


@register_policy("magnitude", needs=("weights",))
def magnitude(context: PolicyInput) -> NDArray[np.bool_]:
    """The k parameters of largest absolute value."""
    return top_k(np.abs(context.weights), context.k)


@register_policy("random")
def random(context: PolicyInput) -> NDArray[np.bool_]:
    """Coordinates drawn uniformly without replacement.

    Ranks seeded draws, so that masks of one seed and growing ratio contain one another and a
    sweep over ratios compares like with like.
    """
    draws = np.random.Generator(np.random.PCG64(context.seed)).random(context.layout.size)
    return top_k(draws, context.k)


@register_policy("critical_layers", needs=("scores",))
def critical_layers(context: PolicyInput) -> NDArray[np.bool_]:
    """What single tensors give away first, then the highest scores.

    In this order: the last layer (labels are read off it), the first two convolutions or, without
    any, the first layer (they see the image), embeddings (their rows are the tokens), biases (they
    give the scale of an analytic inversion), and the highest scores of what is left. First and
    last are by definition order, among the layers that are not forced.
    """
    layout = context.layout
    names = layers(layout)
    seeing = convolutions(layout)[:2] or names[:1]
    return _filled(
        context,
        [
            _tensors(layout, names[-1:]),
            _tensors(layout, seeing),
            {entry.name for entry in layout.entries if is_embedding(entry, layout)},
            {entry.name for entry in layout.entries if is_bias(entry)},
            {entry.name for entry in layout.entries},
        ],
    )


@register_policy("first_layers", needs=("scores",))
def first_layers(context: PolicyInput) -> NDArray[np.bool_]:
    """Tensor after tensor in the order of definition; the highest scores of the last one.

    The first layers see the image itself. Where the definition does not follow the computation,
    force the layers that see the input.
    """
    return _filled(context, ({entry.name} for entry in context.layout.entries))


@register_policy("all", ratio=1.0)
def everything(context: PolicyInput) -> NDArray[np.bool_]:
    """Every coordinate, whatever the ratio."""
    return np.ones(context.layout.size, np.bool_)


@register_policy("none", ratio=0.0)
def nothing(context: PolicyInput) -> NDArray[np.bool_]:
    """No coordinate, whatever the ratio: the baseline without protection."""
    return np.zeros(context.layout.size, np.bool_)


def _quotas(layout: ParameterLayout, k: int) -> list[int]:
    if layout.size == 0:
        return [0] * len(layout.entries)
    # Largest remainders: whole parts first, what is missing to k goes to the largest fractions.
    shares = [divmod(k * entry.size, layout.size) for entry in layout.entries]
    quotas = [whole for whole, _ in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: -shares[i][1])
    for i in by_remainder[: k - sum(quotas)]:
        quotas[i] += 1
    return quotas


def _filled(context: PolicyInput, groups: Iterable[set[str]]) -> NDArray[np.bool_]:
    """Select k coordinates group by group, by scores within the one that does not fit."""
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
