"""Tied tensors: one parameter that a state dict lists under several names.

A coordinate that is masked under one name only would leave in plaintext under the other, so tied
tensors are selected alike. All names count towards k, because all of them are encrypted: with w
names a coordinate takes w of the k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedsens.errors import ConfigurationError, LayoutError
from fedsens.layout import Entry, ParameterLayout
from fedsens.mask._layers import forced_names

if TYPE_CHECKING:
    from fedsens.mask._mask import EncryptionMask

Pairs = Iterable[tuple[str, str]]
Selection = NDArray[np.bool_]
Run = Callable[[int], Selection]  # a policy: so many coordinates of a layout


def tied_pairs(
    arrays: Mapping[str, NDArray[Any]], layout: ParameterLayout
) -> tuple[tuple[str, str], ...]:
    """Tensors with the same shape, type and content, such as an output tied to its embedding.

    Constant tensors are not compared: fresh biases and running statistics are equal by chance.
    Tensors that are not tied but begin as copies (``nn.TransformerEncoder`` copies its layer)
    cannot be told apart from tied ones in an initial model, and are pairs here, too.

    Args:
        arrays: name to array, exactly of this layout.
        layout: the layout.

    Returns:
        Pairs of names, each of the first tensor and a later one of the same content.
    """
    seen: dict[tuple[Any, ...], list[str]] = {}
    pairs: list[tuple[str, str]] = []
    for entry in layout.entries:
        array = arrays[entry.name]
        if array.size < 2 or (array == array.flat[0]).all():
            continue
        key = (entry.shape, entry.dtype, array.flat[0].item(), array.flat[-1].item())
        known = seen.setdefault(key, [])
        twin = next((name for name in known if np.array_equal(array, arrays[name])), None)
        if twin is None:
            known.append(entry.name)
        else:
            pairs.append((twin, entry.name))
    return tuple(pairs)


def tied_but_masked_apart(
    arrays: Mapping[str, NDArray[Any]], layout: ParameterLayout, mask: EncryptionMask
) -> list[tuple[str, str]]:
    """Pairs of :func:`tied_pairs` that a mask treats differently.

    Args:
        arrays: name to array, exactly of this layout.
        layout: the layout.
        mask: the mask.

    Returns:
        Pairs of names; what is masked of one leaves in plaintext as the other.
    """
    own = {entry.name: mask.of(entry) for entry in layout.entries}
    pairs = tied_pairs(arrays, layout)
    return [(a, b) for a, b in pairs if not np.array_equal(own[a], own[b])]


def selectable_count(
    layout: ParameterLayout, k: int, tied: Pairs = (), force: str | Iterable[str] = ()
) -> int:
    """The number of coordinates of a mask that is to have k of them and selects twins alike.

    It is k wherever the tensors that are neither tied nor forced have at least w - 1 coordinates,
    w being the largest number of names of one tensor. Otherwise, in a model of almost nothing but
    tied tensors, it is the largest number below k that can be met; if these have different numbers
    of names, nothing but everything and nothing can be relied on, and a ConfigurationError says so.

    Args:
        layout: the model's layout.
        k: the number that a ratio stands for, from :func:`fedsens.mask.mask_count`.
        tied: pairs of tied tensors.
        force: what is encrypted whole.

    Returns:
        The number, which :func:`fedsens.mask.select_mask` meets whatever the policy.
    """
    groups = groups_of(layout, tied)
    names = with_twins(forced_names(layout, force), groups)
    free = [entry for entry in layout.entries if entry.name not in names]
    forced = layout.size - sum(entry.size for entry in free)
    return k if k <= forced else forced + _reachable(free, groups, k - forced)


def groups_of(layout: ParameterLayout, tied: Pairs) -> list[list[str]]:
    """Pairs as disjoint groups of names, in the order of the layout."""
    shapes = {entry.name: (entry.shape, entry.dtype) for entry in layout.entries}
    group = {name: {name} for name in shapes}
    for one, other in tied:
        if shapes.get(one) is None or shapes.get(one) != shapes.get(other):
            raise LayoutError(
                f"expected tied tensors of one shape and type in the layout, got {one} and {other}"
            )
        union = group[one] | group[other]
        group |= dict.fromkeys(union, union)
    place = {name: index for index, name in enumerate(shapes)}
    distinct = {frozenset(names) for names in group.values() if len(names) > 1}
    return sorted(
        (sorted(names, key=place.__getitem__) for names in distinct),
        key=lambda names: place[names[0]],
    )


def with_twins(names: frozenset[str], groups: Iterable[Iterable[str]]) -> frozenset[str]:
    """Names, and all names of what they are tied to."""
    return names.union(*(each for each in groups if not names.isdisjoint(each)))


def _reachable(free: list[Entry], groups: list[list[str]], k: int) -> int:
    """The largest number up to k that whole groups and single coordinates add up to."""
    sizes = {entry.name: entry.size for entry in free}
    open_ = [group for group in groups if group[0] in sizes]
    single = sum(sizes.values()) - sum(len(group) * sizes[group[0]] for group in open_)
    widths = {len(group) for group in open_ if sizes[group[0]]}
    if not widths or single >= max(widths) - 1 or k == sum(sizes.values()):
        return k
    if len(widths) > 1:
        raise ConfigurationError(
            f"expected at least {max(widths) - 1} parameters that are neither tied nor forced, got "
            f"{single}; encrypt everything (ratio 1), or nothing"
        )
    width = widths.pop()
    whole = min(k // width, sum(sizes[group[0]] for group in open_))
    return whole * width + min(single, k - whole * width)


class Alike:
    """Turns a policy into one that treats tied tensors alike and still meets a number exactly."""

    def __init__(self, layout: ParameterLayout, groups: list[list[str]]) -> None:
        """Find the places of tied tensors; groups that are not in the layout are left out."""
        entries = {entry.name: entry for entry in layout.entries}
        self._groups = [[entries[n].slice for n in g] for g in groups if g[0] in entries]
        self._size = layout.size
        self._single = np.ones(layout.size, np.bool_)
        for place in (place for group in self._groups for place in group):
            self._single[place] = False

    def levelled(self, values: NDArray[Any]) -> NDArray[Any]:
        """Scores or weights in which all names of a tensor have the largest of their values."""
        if not values.size:  # the policy does not look at them
            return values
        level = values.copy()
        for group in self._groups:
            largest = np.maximum.reduce([values[place] for place in group])
            for place in group:
                level[place] = largest
        level.flags.writeable = False
        return level

    def select(self, k: int, run: Run) -> Selection:
        """A policy's choice of k coordinates, a number from :func:`selectable_count`.

        A tied coordinate is taken with all its names where the policy selects one of them. The
        policy is asked for as many coordinates as keep the total within k. The few that are then
        missing, because the next one has more names than there is room for, come from tensors
        that are not tied; where all of these are taken already, some give way to the next one.
        """
        if k in {0, self._size}:  # which ``none`` and ``all`` select whatever they are asked
            return run(k)
        asked = _largest(lambda n: np.count_nonzero(self._whole(run(n))), k, self._size)
        # Twins of what was selected may add more than there is room for, hence fewer were asked.
        chosen = self._whole(run(asked))
        if (missing := k - int(np.count_nonzero(chosen))) == 0:
            return chosen
        singles = int(np.count_nonzero(chosen & self._single)) + missing
        chosen &= ~self._single
        if singles > np.count_nonzero(self._single):
            singles = self._widen(chosen, self._whole(run(asked + 1)), singles)
        return chosen | self._singles(singles, run)

    def _whole(self, selected: Selection) -> Selection:
        """Selected coordinates and their twins."""
        chosen = selected.copy()
        for group in self._groups:
            either = np.logical_or.reduce([chosen[place] for place in group])
            for place in group:
                chosen[place] = either
        return chosen

    def _singles(self, count: int, run: Run) -> Selection:
        """The policy's choice of so many coordinates that are not tied."""
        asked = _largest(lambda n: np.count_nonzero(run(n) & self._single), count, self._size)
        chosen = run(asked) & self._single
        # Nothing is missing here under a policy whose masks of growing k contain one another.
        missing = count - int(np.count_nonzero(chosen))
        chosen[np.flatnonzero(self._single & ~chosen)[:missing]] = True
        return chosen

    def _widen(self, chosen: Selection, following: Selection, singles: int) -> int:
        """Add tied coordinates until there are enough single ones for the rest."""
        most = int(np.count_nonzero(self._single))
        for group in self._groups:
            for index in np.flatnonzero(following[group[0]] & ~chosen[group[0]]):
                if singles <= most:
                    return singles
                if singles < len(group):  # of a model with next to no single ones
                    return most
                for place in group:
                    chosen[place.start + index] = True
                singles -= len(group)
        return min(singles, most)


def _largest(measure: Callable[[int], Any], bound: int, top: int) -> int:
    """The largest n up to ``top`` of which a growing measure, 0 at n = 0, is within a bound."""
    low, low_at, high, high_at = 0, 0, top, int(measure(top))
    if high_at <= bound:
        return top
    interpolate = True  # by turns with halving, since a measure can be far from a straight line
    while high - low > 1:
        step = (bound - low_at) * (high - low) // (high_at - low_at)
        middle = low + max(1, min(step, high - low - 1)) if interpolate else (low + high) // 2
        at = int(measure(middle))
        if at == bound:
            return middle
        low, low_at, high, high_at = (
            (middle, at, high, high_at) if at < bound else (low, low_at, middle, at)
        )
        interpolate = not interpolate
    return low
