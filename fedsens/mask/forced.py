"""Forced layers: tensors that are encrypted whole, whatever the policy thinks of them."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from fedsens.errors import ConfigurationError
from fedsens.layout import ParameterLayout
from fedsens.mask.kinds import layers, module_of

SHOWN_NAMES = 40


def forced_names(layout: ParameterLayout, force: str | Iterable[str]) -> frozenset[str]:
    """Resolve what the user forces to the names of tensors.

    Each item is ``"first"`` or ``"last"``, a tensor (``conv1.weight``), a module (``conv1``,
    with all tensors below it), or a shell pattern (``*.bias``), matched with upper and lower case
    kept apart. The first (last) layer is the first (last) module in the state dict's order that
    has parameters of its own, with all its tensors. That is the order of definition, not
    necessarily that of computation. A module that is itself called ``first`` is ``first.*``, and
    a tensor shared under two names is two tensors here: force both.

    Args:
        layout: the model.
        force: one item or several.

    Returns:
        Names of floating-point tensors of the layout.

    Raises:
        ConfigurationError: an item matches nothing; the text lists the names that exist.
    """
    names: set[str] = set()
    for item in (force,) if isinstance(force, str) else force:
        found = _resolve(layout, item)
        if not found:
            raise ConfigurationError(
                f"expected 'first', 'last', or a tensor, module or pattern to force, got {item!r}, "
                f"which matches nothing; choose among {_known(layout)}"
            )
        names |= found
    return frozenset(names)


def _resolve(layout: ParameterLayout, item: str) -> set[str]:
    names = [entry.name for entry in layout.entries]
    if item in {"first", "last"}:
        owners = layers(layout)
        edge = owners[:1] if item == "first" else owners[-1:]
        return {name for name in names if module_of(name) in edge}
    return {
        name
        for name in names
        if name == item or name.startswith(f"{item}.") or fnmatchcase(name, item)
    }


def _known(layout: ParameterLayout) -> str:
    names = [entry.name for entry in layout.entries]
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more
