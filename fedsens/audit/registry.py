"""Attacks by name.

An attack is one decorated function from what the attacker has to images::

    @register_attack("blank", threat="aware")
    def blank(view: AttackView, effort: Effort) -> Tensor:
        return torch.full((view.batch, *view.shape), 0.5)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedsens.audit.view import AttackView
from fedsens.extensions import Registry

Threat = Literal["naive", "aware", "analytic", "learned", "deviating"]
Kind = Literal["images", "tokens"]


@dataclass(frozen=True)
class Effort:
    """How hard an attack tries.

    Attributes:
        steps: iterations of each start.
        starts: from so many random images; the attack's own loss chooses.
        generator: of whatever is random.
    """

    steps: int
    starts: int
    generator: torch.Generator


Run = Callable[[AttackView, Effort], Tensor]


@dataclass(frozen=True)
class Attack:
    """A registered attack.

    Attributes:
        name: what users write to choose it.
        threat: ``naive`` takes encrypted coordinates for zeros, ``aware`` leaves them out,
            ``analytic`` solves for the input of a layer, ``learned`` has public images,
            ``deviating`` has sent out another model.
        run: from the attacker's view to images of shape (batch, channels, height, width) in [0, 1],
            or to booleans of shape (vocabulary,): which tokens occur.
        kind: of the samples that it recovers.
        applies: whether there is anything for it to attack in a view with nothing encrypted.
    """

    name: str
    threat: Threat
    run: Run
    kind: Kind = "images"
    applies: Callable[[AttackView], bool] = lambda view: True


_attacks = Registry[Attack]("attack", "fedsens.attacks")


def register_attack(
    name: str,
    *,
    threat: Threat,
    kind: Kind = "images",
    applies: Callable[[AttackView], bool] = lambda view: True,
) -> Callable[[Run], Run]:
    """Register the decorated function as an attack.

    Args:
        name: what users write to choose it.
        threat: what the attacker knows.
        kind: of the samples that it recovers.
        applies: whether to try it by default, from a view with nothing encrypted.

    Returns:
        The decorator; it returns the function unchanged.
    """

    def register(run: Run) -> Run:
        _attacks.add(name, Attack(name, threat, run, kind, applies), run)
        return run

    return register


def attack_names() -> list[str]:
    """All registered names, in the order of their registration."""
    import fedsens.audit.attacks  # noqa: F401 - registers the attacks

    return list(_attacks)


def get_attack(name: str) -> Attack:
    """A registered attack.

    Args:
        name: its name.

    Returns:
        The attack.

    Raises:
        ConfigurationError: no attack has the name; of the registry.
    """  # noqa: DOC502
    import fedsens.audit.attacks  # noqa: F401 - registers the attacks

    return _attacks[name]
