"""What a study says: the union of all attacks, beside a guess without any update."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from fedsens.audit._attack import get_attack
from fedsens.audit._metrics import CONFIDENCE, Interval, interval, share_bounds
from fedsens.audit._trial import FIRST, FULL_ENCRYPTION, NO_ENCRYPTION, WORKS, Outcome, Protection

IDENTIFIED = 0.01  # of the victims, by chance
MARGIN = 0.02  # of the score, above a guess
ALONE = 0.5  # as WORKS, of a server that deviates: images that share a bin are lost by design
UNION = "union"


@dataclass(frozen=True)
class VerdictRow:
    """One attack on one protection.

    Attributes:
        policy: of the mask.
        ratio: share that is encrypted.
        remainder: what happens to the rest.
        attack: an attack, or ``union``: for each victim, the best of all but the naive ones.
        threat: what the attacker knows; for the union, that of all.
        victims: how many were attacked.
        score: SSIM of images or F1 of tokens, over victims.
        excess: score above the guess, victim by victim; the guess is the class's mean image, or
            what the union makes of an update of which everything is encrypted, if that is better.
        identified: share of the victims that were told from the candidates, those left out that
            are told with everything encrypted, too: the grey image of an attack that sees nothing
            is nearest to them by chance.
        certain: lower bound on that share among all updates (Clopper and Pearson 1934).
        possible: upper bound likewise: what so many victims allow for.
        works: whether the attack works with nothing encrypted; if not, its failure means nothing.
        case: what the client of the update did.
    """

    policy: str
    ratio: float
    remainder: str
    attack: str
    threat: str
    victims: int
    score: Interval
    excess: Interval
    identified: float
    certain: float
    possible: float
    works: bool
    case: str

    @property
    def protection(self) -> Protection:
        """What was attacked."""
        return Protection(self.policy, self.ratio, self.remainder)

    def is_noise(self, margin: float = MARGIN) -> bool:
        """Whether the attack does no better than a guess without any update.

        Args:
            margin: of the score.

        Returns:
            True if even the upper end of the excess's interval is within the margin, and at most
            one victim in a hundred is told from others.
        """
        return self.excess.high <= margin and self.identified <= IDENTIFIED


def verdict(
    outcomes: Iterable[Outcome], prior: Sequence[float], confidence: float = CONFIDENCE
) -> list[VerdictRow]:
    """A line for each protection and attack, and one for the union of the attacks.

    Naive attacks never enter the union: they are there to reproduce published results. Without any
    other attack that works with nothing encrypted the union does not work either, because then no
    failure says anything about a mask. What a weaker attack finds nevertheless, is found, so it
    enters too. A victim of which an attack is missing, because the study was interrupted, does not
    enter, unless another has found it already.

    Args:
        outcomes: of one case of a study that has the anchor of nothing encrypted.
        prior: score of each victim's guess.
        confidence: of the intervals.

    Returns:
        The lines, protection by protection, the union last.
    """
    tried: dict[Protection, dict[str, list[Outcome]]] = {}
    for outcome in outcomes:
        some = tried.setdefault(outcome.trial.protection, {})
        some.setdefault(outcome.trial.attack, []).append(outcome)
    works = {name: works_at(name, some) for name, some in tried.get(NO_ENCRYPTION, {}).items()}
    aware = {name for some in tried.values() for name in some if not _naive(name)}
    floor, by_chance = dict(enumerate(prior)), dict.fromkeys(range(len(prior)), 0.0)
    for outcome in _union(tried.get(FULL_ENCRYPTION, {}), aware):
        image = outcome.trial.image
        floor[image] = max(floor[image], outcome.score)
        by_chance[image] = outcome.identified
    lines = []
    for protection, attacks in tried.items():
        for name, own in attacks.items():
            threat = get_attack(name).threat
            working = works.get(name, False)
            lines.append(
                _line(protection, name, threat, own, working, floor, by_chance, confidence)
            )
        best = _union(attacks, aware)
        if best:
            working = any(works.get(name, False) for name in aware)
            lines.append(
                _line(protection, UNION, "all", best, working, floor, by_chance, confidence)
            )
    return lines


def verdicts(
    outcomes: Iterable[Outcome],
    priors: Mapping[str, Sequence[float]],
    confidence: float = CONFIDENCE,
) -> list[VerdictRow]:
    """The verdict on each case of a study.

    Args:
        outcomes: of the study.
        priors: case to the score of each victim's guess.
        confidence: of the intervals.

    Returns:
        The lines, case by case.
    """
    by_case: dict[str, list[Outcome]] = {case: [] for case in priors}
    for outcome in outcomes:
        by_case[outcome.trial.case].append(outcome)
    return [
        line for case, some in by_case.items() for line in verdict(some, priors[case], confidence)
    ]


def union_of(lines: Iterable[VerdictRow]) -> dict[Protection, VerdictRow]:
    """The union's line of every protection; none where no attack works."""
    return {line.protection: line for line in lines if line.attack == UNION and line.works}


def works_at(attack: str, some: Sequence[Outcome]) -> bool:
    """Whether an attack works, so that its failure says something.

    It recovers 95 % of them, by score or told from others; half if it is a deviating server's.
    """
    least = ALONE if get_attack(attack).threat == "deviating" else WORKS
    first = [each for each in some if each.trial.image < FIRST]
    score, found = (sum(getattr(o, name) for o in first) for name in ("score", "identified"))
    return bool(first) and max(score, found) >= least * len(first)


def _naive(name: str) -> bool:
    return get_attack(name).threat == "naive"


def _union(attacks: Mapping[str, Sequence[Outcome]], aware: set[str]) -> list[Outcome]:
    by_victim: dict[int, list[Outcome]] = {}
    for outcome in (each for name in aware for each in attacks.get(name, ())):
        by_victim.setdefault(outcome.trial.image, []).append(outcome)
    return [
        replace(max(some, key=lambda o: o.score), identified=max(o.identified for o in some))
        for _, some in sorted(by_victim.items())
        if len(some) == len(aware) or any(each.identified for each in some)
    ]


def _line(
    protection: Protection,
    name: str,
    threat: str,
    some: Sequence[Outcome],
    works: bool,
    floor: Mapping[int, float],
    by_chance: Mapping[int, float],
    confidence: float,
) -> VerdictRow:
    shares = _shares_identified(some, by_chance)
    certain, possible = share_bounds(sum(shares), len(shares), confidence)
    return VerdictRow(
        *protection,
        attack=name,
        threat=threat,
        victims=len(some),
        score=interval([o.score for o in some], confidence=confidence),
        excess=interval([o.score - floor[o.trial.image] for o in some], confidence=confidence),
        identified=sum(shares) / len(shares) if shares else 0.0,
        certain=certain,
        possible=possible,
        works=works,
        case=some[0].trial.case,
    )


def _shares_identified(some: Sequence[Outcome], by_chance: Mapping[int, float]) -> list[float]:
    """The share of each victim that is told from others, of what is not told from nothing, too."""
    shares = [(o.identified, by_chance[o.trial.image]) for o in some]
    return [max(0.0, own - luck) / (1 - luck) for own, luck in shares if luck < 1]
