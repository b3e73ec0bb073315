"""Layers, told by the names and shapes of a layout alone, and those that are forced.

A layout comes over the network and holds no modules, so these are rules about names. A model whose
tensors are called otherwise is served by forced layers: tensors that are encrypted whole, whatever
the policy thinks of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from fedsens.errors import ConfigurationError
from fedsens.layout import Entry, ParameterLayout

SHOWN_NAMES = 40
STATISTICS = ("running_mean", "running_var")
EMBEDDING = re.compile("embed|(?:^|_)emb(?:_|$)|^wte$|^wpe$")  # in one part of a dotted name


def module_of(name: str) -> str:
    """The module that owns a tensor, by its name; empty for a tensor of the model itself."""
    # torch.nn.utils.parametrize keeps conv.weight under conv.parametrizations.weight.original.
    owner = re.sub(r"(^|\.)parametrizations\..*", r"\1_", name)
    return owner.rpartition(".")[0]


def layers(layout: ParameterLayout) -> list[str]:
    """Modules with parameters of their own in order; running statistics alone make no layer."""
    owners = (
        module_of(entry.name)
        for entry in layout.entries
        if entry.size and not entry.name.endswith(STATISTICS)
    )
    return list(dict.fromkeys(owners))


def convolutions(layout: ParameterLayout) -> list[str]:
    """Modules with a weight of three to five dimensions, in the order of their definition.

    A tensor of so many dimensions that is not called weight, such as the positions of a vision
    transformer, makes no convolution.
    """
    found = (
        module_of(entry.name)
        for entry in layout.entries
        if 3 <= len(entry.shape) <= 5 and entry.size and _leaf(entry.name) == "weight"
    )
    return list(dict.fromkeys(found))


def is_embedding(entry: Entry, layout: ParameterLayout) -> bool:
    """Whether a tensor looks like the table of an embedding.

    True for two dimensions, in a module without a bias, with a part of the dotted name that
    contains ``embed``, has ``emb`` as a word, or is ``wte`` or ``wpe`` (Hugging Face's models).
    """
    if len(entry.shape) != 2 or not any(map(EMBEDDING.search, entry.name.lower().split("."))):
        return False
    module = module_of(entry.name)
    return not any(is_bias(e) and module_of(e.name) == module for e in layout.entries)


def is_bias(entry: Entry) -> bool:
    """Whether the last part of a name contains ``bias``, as also ``bias_ih_l0`` does."""
    return "bias" in _leaf(entry.name)


def _leaf(name: str) -> str:
    inner = re.search(r"(?:^|\.)parametrizations\.([^.]+)", name)
    return inner.group(1) if inner else name.rpartition(".")[2]


def forced_names(layout: ParameterLayout, force: str | Iterable[str]) -> frozenset[str]:
    """Resolve what the user forces to the names of tensors.

    Each item is ``"first"`` or ``"last"``, a tensor (``conv1.weight``), a module (``conv1``,
    with all tensors below it), or a shell pattern (``*.bias``), matched with upper and lower case
    kept apart. The first (last) layer is the first (last) module in the state dict's order that
    has parameters of its own, with all its tensors. That is the order of definition, not
    necessarily that of computation. A module that is itself called ``first`` is ``first.*``. A
    tensor shared under two names is two tensors here; :func:`fedsens.mask.select_mask` forces both.

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


def visible_statistics(layout: ParameterLayout, force: str | Iterable[str]) -> list[str]:
    """Running statistics of normalisation layers that no mask is sure to hold.

    Args:
        layout: the model.
        force: what is encrypted whole, as in :func:`forced_names`.

    Returns:
        Names of the running means and variances that are not forced.
    """
    forced = forced_names(layout, force)
    names = (entry.name for entry in layout.entries)
    return [name for name in names if name.endswith(STATISTICS) and name not in forced]
