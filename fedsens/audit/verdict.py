"""What a study says: the union of all attacks, beside a guess without any update."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from fedsens.audit.metrics import CONFIDENCE, Interval, interval
from fedsens.audit.registry import get_attack
from fedsens.audit.trial import EVERYTHING, NOTHING, Outcome, Protection

IDENTIFIED = 0.01  # of the images, by chance
MARGIN = 0.02  # of SSIM, above a guess
# What an attack must reach with nothing encrypted to work: mean SSIM, or share identified.
WORKS = 0.95
UNION = "union"


@dataclass(frozen=True)
class Line:
    """One attack on one protection.

    Attributes:
        policy: of the mask.
        ratio: share that is encrypted.
        remainder: what happens to the rest.
        attack: an attack, or ``union``: for each victim, the best of all but the naive ones.
        threat: what the attacker knows; for the union, that of all.
        victims: how many were attacked.
        ssim: over victims.
        excess: SSIM above the guess, victim by victim; the guess is the class's mean image, or what
            the union makes of an update of which everything is encrypted, if that is better.
        identified: share of the images that were told from the candidates.
        works: whether the attack works with nothing encrypted; if not, its failure means nothing.
    """

    policy: str
    ratio: float
    remainder: str
    attack: str
    threat: str
    victims: int
    ssim: Interval
    excess: Interval
    identified: float
    works: bool

    @property
    def protection(self) -> Protection:
        """What was attacked."""
        return Protection(self.policy, self.ratio, self.remainder)

    def is_noise(self, margin: float = MARGIN) -> bool:
        """Whether the attack does no better than a guess without any update.

        Args:
            margin: of SSIM.

        Returns:
            True if even the upper end of the excess's interval is within the margin, and at most
            one image in a hundred is told from others.
        """
        return self.excess.high <= margin and self.identified <= IDENTIFIED


def verdict(
    outcomes: Iterable[Outcome], prior: Sequence[float], confidence: float = CONFIDENCE
) -> list[Line]:
    """A line for each protection and attack, and one for the union of the attacks.

    Naive attacks never enter the union: they are there to reproduce published results. Without any
    other attack that works with nothing encrypted there is no union, because then no failure says
    anything about a mask. What a weaker attack finds nevertheless, is found, so it enters too. A
    victim of which an attack is missing, because the study was interrupted, does not enter.

    Args:
        outcomes: of a study that has the anchor of nothing encrypted.
        prior: SSIM of each victim's guess.
        confidence: of the intervals.

    Returns:
        The lines, protection by protection, the union last.
    """
    tried: dict[Protection, dict[str, list[Outcome]]] = {}
    for outcome in outcomes:
        some = tried.setdefault(outcome.trial.protection, {})
        some.setdefault(outcome.trial.attack, []).append(outcome)
    works = {name: _works(some) for name, some in tried.get(NOTHING, {}).items()}
    aware = {name for some in tried.values() for name in some if not _naive(name)}
    floor = dict(enumerate(prior))
    for outcome in _union(tried.get(EVERYTHING, {}), aware):
        image = outcome.trial.image
        floor[image] = max(floor[image], outcome.ssim)
    lines = []
    for protection, attacks in tried.items():
        for name, own in attacks.items():
            threat = get_attack(name).threat
            working = works.get(name, False)
            lines.append(_line(protection, name, threat, own, working, floor, confidence))
        best = _union(attacks, aware)
        if best and any(works.get(name, False) for name in aware):
            lines.append(_line(protection, UNION, "all", best, True, floor, confidence))
    return lines


def union_of(lines: Iterable[Line]) -> dict[Protection, Line]:
    """The union's line of every protection."""
    return {line.protection: line for line in lines if line.attack == UNION}


def _naive(name: str) -> bool:
    return get_attack(name).threat == "naive"


def _works(some: Sequence[Outcome]) -> bool:
    found = sum(each.identified for each in some)
    return sum(each.ssim for each in some) >= WORKS * len(some) or found >= WORKS * len(some)


def _union(attacks: Mapping[str, Sequence[Outcome]], aware: set[str]) -> list[Outcome]:
    by_victim: dict[int, list[Outcome]] = {}
    for outcome in (each for name in aware for each in attacks.get(name, ())):
        by_victim.setdefault(outcome.trial.image, []).append(outcome)
    return [
        replace(max(some, key=lambda o: o.ssim), identified=max(o.identified for o in some))
        for _, some in sorted(by_victim.items())
        if len(some) == len(aware)
    ]


def _line(
    protection: Protection,
    name: str,
    threat: str,
    some: Sequence[Outcome],
    works: bool,
    floor: Mapping[int, float],
    confidence: float,
) -> Line:
    return Line(
        *protection,
        attack=name,
        threat=threat,
        victims=len(some),
        ssim=interval([o.ssim for o in some], confidence=confidence),
        excess=interval([o.ssim - floor[o.trial.image] for o in some], confidence=confidence),
        identified=sum(o.identified for o in some) / len(some),
        works=works,
    )
