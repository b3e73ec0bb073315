"""What a study tries, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from fedsens._files import Arrays
from fedsens.errors import ConfigurationError
from fedsens.remainder import add_noise

#: The remainder that is sent as it is.
PLAIN = "plain"
WORST = "the gradient of one image"
WORKS = 0.95  #: SSIM, or share told from others, from which on a sample counts as recovered
FIRST = 8  # victims on which every attack is tried with nothing encrypted
#: The remainder that stays with the client.
WITHHELD = "withheld"
ALIASES = {"noised": "gaussian"}


class Protection(NamedTuple):
    """How a victim's update is protected.

    Attributes:
        policy: of the mask.
        ratio: share of the parameters that is encrypted.
        remainder: what happens to the rest: ``plain``, ``gaussian:1``, ``laplace:3``, ``withheld``.
    """

    policy: str
    ratio: float
    remainder: str = PLAIN

    def __str__(self) -> str:
        if self.ratio in {0, 1}:
            name = "everything" if self.ratio else "nothing"
        else:
            name = f"{self.policy} {self.ratio:g}"
        return name if self.remainder == PLAIN else f"{name} {self.remainder}"


#: ratio 0
NO_ENCRYPTION = Protection("none", 0.0)
#: ratio 1
FULL_ENCRYPTION = Protection("all", 1.0)


@dataclass(frozen=True)
class Trial:
    """One attack on one update under one protection.

    Attributes:
        policy: of the mask.
        ratio: share of the parameters that is encrypted.
        attack: its name.
        image: number of the victim.
        remainder: what happens to the rest.
        case: what the client of the update did, in words.
    """

    policy: str
    ratio: float
    attack: str
    image: int
    remainder: str = PLAIN
    case: str = WORST

    @property
    def protection(self) -> Protection:
        """All but attack and victim."""
        return Protection(self.policy, self.ratio, self.remainder)


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
        trial: the trial.
        score: of the reconstruction, at most 1: SSIM of images, F1 of tokens; the mean where an
            update is from several samples.
        identified: share of the victim's samples that are told from other candidates.
        seconds: CPU time.
    """

    trial: Trial
    score: float
    identified: float
    seconds: float

    @property
    def settled(self) -> bool:
        """Whether all of the victim is recovered, so that no other attack can change a verdict."""
        return self.score >= WORKS and self.identified == 1


def protections_of(
    policies: Sequence[str], ratios: Sequence[float], remainders: Sequence[str] = (PLAIN,)
) -> list[Protection]:
    """All combinations, the two anchors (nothing and everything encrypted) first.

    Args:
        policies: mask policies.
        ratios: shares; 1 is an anchor already, and 0 needs no policy.
        remainders: what happens to the rest.

    Returns:
        The protections.
    """
    between = [
        Protection(policy, ratio, remainder)
        for policy in policies
        for ratio in ratios
        for remainder in remainders
        if 0 < ratio < 1
    ]
    open_ = [
        Protection(NO_ENCRYPTION.policy, NO_ENCRYPTION.ratio, r) for r in remainders if r != PLAIN
    ]
    return [NO_ENCRYPTION, FULL_ENCRYPTION, *(open_ if 0 in ratios else []), *between]


def trials_of(
    protections: Sequence[Protection], attacks: Sequence[str], victims: int, case: str = WORST
) -> list[Trial]:
    """Every attack on every victim under every protection.

    Args:
        protections: to attack.
        attacks: names.
        victims: how many.
        case: what their clients do.

    Returns:
        The trials, victim by victim, so that an interrupted study has seen every protection.
    """
    return [
        Trial(each.policy, each.ratio, attack, victim, each.remainder, case)
        for victim in range(victims)
        for each in protections
        for attack in attacks
    ]


def remainder_name(text: str) -> str:
    """Check what a user asks for.

    Args:
        text: ``plain``, ``withheld``, ``gaussian:S`` (or ``noised:S``) or ``laplace:S``, where S is
            the noise's standard deviation relative to the root mean square of the visible update.

    Returns:
        The name in one spelling, such as ``gaussian:1``.

    Raises:
        ConfigurationError: it is none of these.
    """
    kind, colon, scale = text.strip().partition(":")
    kind = ALIASES.get(kind, kind)
    if kind in {PLAIN, WITHHELD} and not colon:
        return kind
    try:
        if kind in {"gaussian", "laplace"} and 0 < float(scale) < float("inf"):
            return f"{kind}:{float(scale):g}"
    except ValueError:
        pass
    raise ConfigurationError(
        f"expected plain, withheld, gaussian:S or laplace:S with S above 0, got {text!r}; "
        "write gaussian:1 for noise as large as the remainder's update"
    )


def protected_remainder(
    name: str,
    before: Mapping[str, NDArray[Any]],
    after: Mapping[str, NDArray[Any]],
    rng: np.random.Generator,
) -> Arrays | None:
    """The remainder that leaves the client, by the function that the client's mod applies."""
    if name == WITHHELD:
        return None
    if name == PLAIN:
        return dict(after)
    kind, _, scale = name.partition(":")
    distribution = cast(Literal["gaussian", "laplace"], kind)
    return add_noise(before, after, distribution, float(scale), rng)


def noise_share(name: str) -> float:
    """The noise's root mean square relative to that of the noisy update, from 0 to 1."""
    scale = float(name.partition(":")[2] or 0)
    return scale / math.hypot(1.0, scale)
