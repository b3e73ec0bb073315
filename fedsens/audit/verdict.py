"""What a study says: the union of all attacks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from fedsens.audit.metrics import Interval, interval
from fedsens.audit.registry import get_attack
from fedsens.audit.study import NOTHING, Outcome

IDENTIFIED = 0.01  # of the images, by chance
# What an attack must reach with nothing encrypted to work: mean SSIM, or share identified.
WORKS = 0.95


@dataclass(frozen=True)
class Line:
    """One mask.

    Attributes:
        policy: of the mask.
        ratio: share that is encrypted.
        attack: an attack, or ``union``: for each image, the best of all but the naive ones.
        threat: what the attacker knows; for the union, that of all.
        ssim: over images.
        identified: share of the images that were told from the candidates.
        works: whether the attack works with nothing encrypted; if not, its failure means nothing.
    """

    policy: str
    ratio: float
    attack: str
    threat: str
    ssim: Interval
    identified: float
    works: bool

    def is_noise(self, prior: Interval) -> bool:
        """Whether the attack does no better than a guess without any update.

        Args:
            prior: SSIM of such a guess.

        Returns:
            True if the intervals meet and at most one image in a hundred is told from others.
        """
        return self.ssim.low <= prior.high and self.identified <= IDENTIFIED


def verdict(outcomes: Iterable[Outcome]) -> list[Line]:
    """A line for each mask and attack, and one for the union of the attacks.

    Naive attacks never enter the union: they are there to reproduce published results. Without any
    other attack that works with nothing encrypted there is no union, because then no failure says
    anything about a mask. What a weaker attack finds nevertheless, is found, so it enters too.

    Args:
        outcomes: of a study that has the anchor of nothing encrypted.

    Returns:
        The lines, mask by mask, the union last.
    """
    by_mask: dict[tuple[str, float], dict[str, list[Outcome]]] = {}
    for outcome in outcomes:
        trial = outcome.trial
        mask = by_mask.setdefault((trial.policy, trial.ratio), {})
        mask.setdefault(trial.attack, []).append(outcome)
    works = {
        name: interval([each.ssim for each in some]).mean >= WORKS
        or sum(each.identified for each in some) >= WORKS * len(some)
        for name, some in by_mask.get(NOTHING, {}).items()
    }
    lines = []
    for (policy, ratio), attacks in by_mask.items():
        for name, some in attacks.items():
            threat = get_attack(name).threat
            lines.append(_line(policy, ratio, name, threat, some, works.get(name, False)))
        aware = {name: some for name, some in attacks.items() if not _naive(name)}
        if any(works.get(name, False) for name in aware):
            best = _union(list(aware.values()))
            lines.append(_line(policy, ratio, "union", "all", best, True))
    return lines


def union_of(lines: Iterable[Line]) -> dict[tuple[str, float], Line]:
    """The union's line of every mask."""
    return {(line.policy, line.ratio): line for line in lines if line.attack == "union"}


def _naive(name: str) -> bool:
    return get_attack(name).threat == "naive"


def _union(attacks: Sequence[Sequence[Outcome]]) -> list[Outcome]:
    by_image: dict[int, Outcome] = {}
    for outcome in (each for some in attacks for each in some):
        known = by_image.get(outcome.trial.image, outcome)
        best = outcome if outcome.ssim > known.ssim else known
        found = known.identified or outcome.identified
        by_image[outcome.trial.image] = replace(best, identified=found)
    return list(by_image.values())


def _line(
    policy: str, ratio: float, name: str, threat: str, some: Sequence[Outcome], works: bool
) -> Line:
    share = sum(each.identified for each in some) / len(some)
    return Line(policy, ratio, name, threat, interval([e.ssim for e in some]), share, works)
