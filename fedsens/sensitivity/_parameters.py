"""Which parameters a map is about, their several names, and the names that are shared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fedsens.errors import SensitivityError

Rename = Callable[[str], str | None] | Mapping[str, str | None]


@dataclass(frozen=True)
class TrackedParameters:
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
        """
        return {name: sums[first] for name, first in self.names.items()}


def select_parameters(
    model: nn.Module, names: Iterable[str] | None, rename: Rename | None = None
) -> TrackedParameters:
    """Find the parameters that carry a gradient.

    Raises:
        SensitivityError: there is no such parameter, a name is unknown or frozen, a parameter is
            complex or has no values yet, or two parameters get one name.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    trainable = [name for name, parameter in named.items() if parameter.requires_grad]
    wanted = trainable if names is None else list(names)
    unknown = [name for name in wanted if name not in trainable]
    if unknown:
        raise SensitivityError(
            "expected names of parameters that require a gradient, got "
            f"{'; '.join(_told(name, named, trainable) for name in unknown)}; see "
            "model.named_parameters()"
        )
    if not wanted:
        raise SensitivityError(
            "expected at least one parameter that requires a gradient, got none; unfreeze the "
            "parameters whose sensitivity is wanted"
        )
    full = {name: first[id(named[name])] for name in named if name in set(wanted)}
    parameters = {name: named[name] for name in dict.fromkeys(full.values())}
    _check_values(parameters)
    shared = renamed(full, rename)
    kept = set(shared.values())
    return TrackedParameters({n: p for n, p in parameters.items() if n in kept}, shared)


def renamed(names: Mapping[str, str], rename: Rename | None) -> dict[str, str]:
    """Names under which parameters are shared.

    Raises:
        SensitivityError: two different parameters get one name, no parameter is left, or a mapping
            has names that the model lacks.
    """
    if rename is None:
        return dict(names)
    if isinstance(rename, Mapping) and (unknown := sorted(rename.keys() - names.keys())):
        told = "; ".join(_told(name, {}, list(names)) for name in unknown)
        raise SensitivityError(f"expected names of the map's parameters in rename, got {told}")
    shared: dict[str, str] = {}
    clashes = []
    for name, first in names.items():
        to = rename.get(name, name) if isinstance(rename, Mapping) else rename(name)
        if to is None:
            continue
        if shared.setdefault(to, first) != first:
            clashes.append(f"{name} and {shared[to]} as {to}")
    if clashes or not shared:
        raise SensitivityError(
            "expected a rename that gives every parameter a name of its own and leaves at least "
            f"one, got {'; '.join(clashes) or 'none left'}"
        )
    return shared


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """The names most like one, those that only a wrapper's prefix tells apart first."""
    names = list(known)
    tails = [one for one in names if one.endswith(f".{name}") or name.endswith(f".{one}")]
    close = get_close_matches(name, names, 3, 0.6)
    return list(dict.fromkeys([*tails, *close]))[:3]


def _told(name: str, named: Mapping[str, nn.Parameter], trainable: list[str]) -> str:
    if name in named:
        return f"{name}, which is frozen"
    close = nearest(name, trainable)
    return f"{name} (nearest: {', '.join(close)})" if close else name


def _check_values(parameters: Mapping[str, nn.Parameter]) -> None:
    """Check that gradients of parameters are real numbers; all problems at once."""
    checks = (
        (
            is_lazy,
            "parameters with values; run the model once on a batch under torch.no_grad()",
            "lazy ones that have none yet",
        ),
        (
            lambda p: p.is_meta,
            "parameters with values; load the weights first",
            "ones on the meta device",
        ),
        (
            lambda p: p.is_complex(),
            "real parameters; leave these out with params=[...], or hold their real and imaginary "
            "parts in one real parameter (torch.view_as_complex in forward)",
            "complex ones",
        ),
        (
            lambda p: p.is_inference(),
            "parameters that can have a gradient; make the model outside of torch.inference_mode()",
            "inference tensors",
        ),
    )
    problems = []
    for holds, expected, got in checks:
        names = [name for name, p in parameters.items() if not _lazy(p, holds) and holds(p)]
        if names:
            problems.append(f"expected {expected}; got {got}: {', '.join(names)}")
    if problems:
        raise SensitivityError("; ".join(problems))


def _lazy(parameter: nn.Parameter, holds: object) -> bool:
    """Whether a check other than that for lazy parameters does not apply."""
    return holds is not is_lazy and bool(is_lazy(parameter))
