"""select_mask: from a sensitivity map to the mask of a policy."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsens.errors import ConfigurationError, MaskError
from fedsens.layout import ParameterLayout
from fedsens.mask.forced import forced_names
from fedsens.mask.inputs import CHECKS, FlatMap
from fedsens.mask.mask import EncryptionMask
from fedsens.mask.registry import Policy, PolicyInput, get_policy
from fedsens.topk import mask_count


def select_mask(
    smap: FlatMap | NDArray[Any] | None,
    layout: ParameterLayout,
    policy: str = "sensitivity",
    ratio: float = 0.1,
    force: str | Iterable[str] = (),
    *,
    seed: int = 0,
    weights: NDArray[Any] | None = None,
) -> EncryptionMask:
    """Choose exactly k = floor(ratio * P) coordinates to encrypt.

    Forced tensors come first and count towards k; the policy chooses the others among the
    remaining tensors. A positive factor on all scores changes nothing, short of rounding.

    Args:
        smap: a sensitivity map, P scores as an array, or None for a policy that needs no scores.
        layout: the model's layout, of P coordinates.
        policy: a registered name: all, closure, front, gradient, layerwise, magnitude, none,
            random, sensitivity.
        ratio: share to encrypt, in [0, 1]. The policies ``all`` and ``none`` ignore it.
        force: tensors, modules or patterns to encrypt whole; "first" and "last" are layers.
        seed: non-negative seed, for policies that draw at random.
        weights: P parameter values, for policies that need them.

    Returns:
        The mask, of exactly k coordinates.

    Raises:
        ConfigurationError: the policy is unknown or lacks an input, the ratio or the seed is out
            of range, or ``force`` matches nothing or is larger than k.
    """
    rule = get_policy(policy)
    given = {"scores": smap, "weights": weights}
    for need in rule.needs:
        if given[need] is None:
            raise ConfigurationError(f"expected {need} for policy {policy!r}, got None; pass them")
    if seed < 0:
        raise ConfigurationError(f"expected a seed of at least 0, got {seed}; choose another")
    k = mask_count(ratio if rule.ratio is None else rule.ratio, layout.size)
    names = forced_names(layout, force)
    free = _without(layout, names) if names else layout
    forced = layout.size - free.size
    if forced > k:
        raise ConfigurationError(_too_small(k, forced, layout.size, policy))
    selected = np.zeros(layout.size, np.bool_)
    for entry in layout.entries:
        selected[entry.slice] = entry.name in names
    arrays = {need: CHECKS[need](given[need], layout) for need in rule.needs}
    if forced:
        arrays = {need: values[~selected] for need, values in arrays.items()}
    selected[~selected] = _run(rule, PolicyInput(free, k - forced, seed, **arrays))
    return EncryptionMask(selected, layout.digest)


def _too_small(k: int, forced: int, size: int, policy: str) -> str:
    least = math.ceil(1e6 * forced / size) / 1e6
    return (
        f"expected forced layers of at most {k} of {size} parameters (policy {policy!r}), got "
        f"{forced}; force fewer, or use a ratio of at least {least} and a policy that obeys it"
    )


def _without(layout: ParameterLayout, names: frozenset[str]) -> ParameterLayout:
    return ParameterLayout.from_shapes(
        (entry.name, entry.shape, entry.dtype)
        for entry in layout.entries
        if entry.name not in names
    )


def _run(rule: Policy, context: PolicyInput) -> NDArray[np.bool_]:
    chosen = np.asarray(rule.select(context))
    count = int(np.count_nonzero(chosen))
    if chosen.dtype != np.bool_ or chosen.shape != (context.layout.size,) or count != context.k:
        raise MaskError(
            f"expected {context.k} true among {context.layout.size} booleans from policy "
            f"{rule.name!r}, got {count} in {chosen.dtype}{list(chosen.shape)}; correct the policy"
        )
    return chosen
