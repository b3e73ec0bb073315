"""What kind of layer a tensor belongs to, from the names and shapes of a layout alone.

A layout comes over the network and holds no modules, so these are rules about names. A model whose
tensors are called otherwise is served by forced layers.
"""

from __future__ import annotations

import re

from fedsens.layout import Entry, ParameterLayout

STATISTICS = ("running_mean", "running_var")
EMBEDDING = re.compile("embed|(?:^|_)emb(?:_|$)|^wte$|^wpe$")  # in one part of a dotted name


def module_of(name: str) -> str:
    """The module that owns a tensor, by its name.

    Args:
        name: of the tensor, such as ``block.conv1.weight``.

    Returns:
        The module's name; empty for a tensor of the model itself.
    """
    # torch.nn.utils.parametrize keeps conv.weight under conv.parametrizations.weight.original.
    owner = re.sub(r"(^|\.)parametrizations\..*", r"\1_", name)
    return owner.rpartition(".")[0]


def layers(layout: ParameterLayout) -> list[str]:
    """Modules that have parameters of their own, in the order of their definition.

    Args:
        layout: the model.

    Returns:
        Names without repetition. A module of which there are running statistics only is no layer.
    """
    owners = (
        module_of(entry.name)
        for entry in layout.entries
        if entry.size and not entry.name.endswith(STATISTICS)
    )
    return list(dict.fromkeys(owners))


def convolutions(layout: ParameterLayout) -> list[str]:
    """Modules with a weight of three to five dimensions, in the order of their definition.

    Args:
        layout: the model.

    Returns:
        Names; a tensor of so many dimensions that is not called weight, such as the positions of a
        vision transformer, makes no convolution.
    """
    found = (
        module_of(entry.name)
        for entry in layout.entries
        if 3 <= len(entry.shape) <= 5 and entry.size and _leaf(entry.name) == "weight"
    )
    return list(dict.fromkeys(found))


def is_embedding(entry: Entry, layout: ParameterLayout) -> bool:
    """Whether a tensor looks like the table of an embedding.

    Args:
        entry: a tensor of the layout.
        layout: the model.

    Returns:
        True for two dimensions, in a module without a bias, with a part of the dotted name that
        contains ``embed``, has ``emb`` as a word, or is ``wte`` or ``wpe``, as in Hugging Face's
        models.
    """
    if len(entry.shape) != 2 or not any(map(EMBEDDING.search, entry.name.lower().split("."))):
        return False
    module = module_of(entry.name)
    return not any(is_bias(e) and module_of(e.name) == module for e in layout.entries)


def is_bias(entry: Entry) -> bool:
    """Whether a tensor is a bias: the last part of its name contains ``bias``.

    Args:
        entry: a tensor.

    Returns:
        True also for those of recurrent and attention layers, such as ``bias_ih_l0``.
    """
    return "bias" in _leaf(entry.name)


def _leaf(name: str) -> str:
    inner = re.search(r"(?:^|\.)parametrizations\.([^.]+)", name)
    return inner.group(1) if inner else name.rpartition(".")[2]
