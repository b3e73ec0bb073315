"""The registry of mask policies: a policy is one decorated function.

::

    @register_policy("saliency", needs=("scores", "weights"))
    def saliency(context: PolicyInput) -> NDArray[np.bool_]:
        return top_k(context.scores * np.abs(context.weights), context.k)

Forced layers, the number k, the checks of the scores and the encoding are the caller's work, so a
policy answers one question: which k of these coordinates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedsens.errors import ConfigurationError
from fedsens.extensions import Registry
from fedsens.layout import ParameterLayout

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
