"""Which parameters a map is about, and the several names of one parameter."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from fedsens.errors import SensitivityError


@dataclass(frozen=True)
class Selection:
    """The parameters of a map.

    Attributes:
        parameters: one name of each distinct parameter to the parameter.
        names: every name the map gets to the name under which the parameter is in ``parameters``.
    """

    parameters: dict[str, nn.Parameter]
    names: dict[str, str]

    def expand(self, sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """The sums under every name.

        A tied parameter is in a state dict, and so in what a client sends, once per name: the
        map has to cover each of them.

        Args:
            sums: distinct parameter's name to sums.

        Returns:
            Every name of the map to sums.
        """
        return {name: sums[first] for name, first in self.names.items()}


def select_parameters(model: nn.Module, names: Iterable[str] | None) -> Selection:
    """Find the parameters that carry a gradient.

    Args:
        model: the model.
        names: restrict to these; None for all.

    Returns:
        The selection; parameters with ``requires_grad=False`` are not in it.

    Raises:
        SensitivityError: there is no such parameter, or a name is unknown or frozen.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    trainable = [name for name, parameter in named.items() if parameter.requires_grad]
    wanted = trainable if names is None else list(names)
    unknown = [name for name in wanted if name not in trainable]
    if unknown:
        raise SensitivityError(
            f"expected names of parameters that require a gradient, got {', '.join(unknown)}; "
            "see model.named_parameters()"
        )
    if not wanted:
        raise SensitivityError(
            "expected at least one parameter that requires a gradient, got none; unfreeze the "
            "parameters whose sensitivity is wanted"
        )
    full = {name: first[id(named[name])] for name in named if name in set(wanted)}
    return Selection({name: named[name] for name in dict.fromkeys(full.values())}, full)
