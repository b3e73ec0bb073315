"""select_mask: from a sensitivity map to the mask of a policy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedsens._topk import mask_count
from fedsens.errors import ConfigurationError, MaskError
from fedsens.layout import ParameterLayout
from fedsens.mask._layers import forced_names
from fedsens.mask._mask import EncryptionMask
from fedsens.mask._policies import Need, Policy, PolicyInput, get_policy
from fedsens.mask._tied import Alike, Pairs, groups_of, selectable_count, with_twins


class FlatMap(Protocol):
    """A map over named parameters that can be laid out flat, such as a SensitivityMap."""

    def flat(self, layout: ParameterLayout) -> Any:
        """The scores in the layout's order, as an array of length P."""


def select_mask(
    smap: FlatMap | NDArray[Any] | None,
    layout: ParameterLayout,
    policy: str = "sensitivity",
    ratio: float = 0.1,
    force: str | Iterable[str] = (),
    *,
    seed: int = 0,
    weights: NDArray[Any] | None = None,
    tied: Pairs = (),
) -> EncryptionMask:
    """Choose exactly k = floor(ratio * P) coordinates to encrypt.

    Forced tensors come first and count towards k; the policy chooses the others among the
    remaining tensors. A positive factor on all scores changes nothing, short of rounding.

    Tied tensors are selected and forced alike. All their names count towards k, and they are
    ranked by the largest score of the names; ``random`` draws for each name. See
    :func:`selectable_count` for the rare model in which k is then rounded down.

    Args:
        smap: a sensitivity map, P scores as an array, or None for a policy that needs no scores.
        layout: the model's layout, of P coordinates.
        policy: a registered name: all, critical_layers, first_layers, gradient, layerwise,
            magnitude, none, random, sensitivity.
        ratio: share to encrypt, in [0, 1]. The policies ``all`` and ``none`` ignore it.
        force: tensors, modules or patterns to encrypt whole; "first" and "last" are layers.
        seed: non-negative seed, for policies that draw at random.
        weights: P parameter values, for policies that need them.
        tied: pairs of names of tensors that are one parameter, from :func:`tied_pairs`.

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
    groups = groups_of(layout, tied)
    names = with_twins(forced_names(layout, force), groups)
    free = _without(layout, names) if names else layout
    forced = layout.size - free.size
    if forced > k:
        raise ConfigurationError(_too_small(k, forced, layout.size, policy))
    k = selectable_count(layout, k, tied, force)
    selected = np.zeros(layout.size, np.bool_)
    for entry in layout.entries:
        selected[entry.slice] = entry.name in names
    arrays = {need: _CHECKS[need](given[need], layout) for need in rule.needs}
    if forced:
        arrays = {need: values[~selected] for need, values in arrays.items()}
    selected[~selected] = _choose(rule, PolicyInput(free, k - forced, seed, **arrays), groups)
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


def _choose(rule: Policy, context: PolicyInput, groups: list[list[str]]) -> NDArray[np.bool_]:
    """What a policy selects, with tied tensors alike."""
    if not groups:
        return _run(rule, context)
    alike = Alike(context.layout, groups)
    scores, weights = (alike.levelled(each) for each in (context.scores, context.weights))
    level = replace(context, scores=scores, weights=weights)
    return alike.select(context.k, lambda n: _run(rule, replace(level, k=n)))


def _run(rule: Policy, context: PolicyInput) -> NDArray[np.bool_]:
    chosen = np.asarray(rule.select(context))
    count = int(np.count_nonzero(chosen))
    if chosen.dtype != np.bool_ or chosen.shape != (context.layout.size,) or count != context.k:
        raise MaskError(
            f"expected {context.k} true among {context.layout.size} booleans from policy "
            f"{rule.name!r}, got {count} in {chosen.dtype}{list(chosen.shape)}; correct the policy"
        )
    return chosen


def _checked_scores(smap: FlatMap | NDArray[Any], layout: ParameterLayout) -> NDArray[Any]:
    """The scores of a map in the layout's order: P finite values of at least 0, read-only."""
    scores = _checked(smap if isinstance(smap, np.ndarray) else smap.flat(layout), layout, "scores")
    if scores.size and scores.min() < 0:
        name = layout.name_of(int(scores.argmin()))
        raise MaskError(
            f"expected scores of at least 0, got a negative one in {name}; "
            "pass a map of norms, or clip what decryption noise has made negative"
        )
    return scores


def _checked_weights(weights: NDArray[Any], layout: ParameterLayout) -> NDArray[Any]:
    """P finite parameter values in the layout's order, read-only."""
    return _checked(weights, layout, "weights")


def _checked(values: Any, layout: ParameterLayout, what: str) -> NDArray[Any]:
    array = np.asarray(values).view()
    if array.shape != (layout.size,) or array.dtype.kind != "f":
        raise MaskError(
            f"expected a vector of {layout.size} floating-point {what}, got {array.dtype}"
            f"{list(array.shape)}; lay them out with the model's layout"
        )
    # The extremes are NaN if any value is: two passes, without a temporary as long as the model.
    if array.size and not np.isfinite([array.min(), array.max()]).all():
        name = layout.name_of(int(np.argmin(np.isfinite(array))))
        raise MaskError(
            f"expected finite {what}, got NaN or infinity in {name}; "
            "look for a diverged model or a loss that overflows"
        )
    array.flags.writeable = False
    return array


_CHECKS: dict[Need, Callable[[Any, ParameterLayout], NDArray[Any]]] = {
    "scores": _checked_scores,
    "weights": _checked_weights,
}
