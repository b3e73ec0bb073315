"""The one verdict on a study: which protections hold, what each costs, and what to choose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from fedsens.audit._record import Known
from fedsens.audit._study import AttackStudy
from fedsens.audit._trial import (
    FULL_ENCRYPTION,
    NO_ENCRYPTION,
    PLAIN,
    WITHHELD,
    WORST,
    Protection,
    Trial,
    trials_of,
)
from fedsens.audit._verdict import MARGIN, UNION, VerdictRow, works_at
from fedsens.crypto import CkksParameters
from fedsens.mask import mask_count
from fedsens.protocol import traffic

NAMED = 3  # undecided protections; a table has all
FEWEST = 8  # victims: an interval from fewer says little
Answer = Literal["holds", "leaks", "open"]
VOID = (
    "Only ratio 1: no attack tried works on this model with nothing encrypted, so that the failure "
    "of one says nothing about a mask; try more steps and starts, or other attacks."
)


@dataclass(frozen=True)
class Choice:
    """A protection that can be chosen.

    Attributes:
        line: of the union of all attacks.
        answer: whether it ``holds``, ``leaks``, or the study leaves it ``open``.
        bytes_up: of one client in one round.
        bytes_down: likewise, the mask included.
    """

    line: VerdictRow
    answer: Answer
    bytes_up: float
    bytes_down: float

    @property
    def protection(self) -> Protection:
        """What is recommended, or not."""
        return self.line.protection


def choices(
    lines: Iterable[VerdictRow], size: int, codec: CkksParameters, margin: float = MARGIN
) -> list[Choice]:
    """Every protection of the first case with its cost, from cheap to dear.

    A protection holds if the upper end of the interval of its excess over a guess is within the
    margin, at most one victim in a hundred is told from others, and enough victims were attacked.
    Where everything is encrypted, or the rest withheld, nothing is visible, so that it holds
    without any attack.

    Args:
        lines: of a verdict.
        size: P, of the model.
        codec: CKKS parameters.
        margin: of the score.

    Returns:
        The choices.
    """
    some = list(lines)
    unions = [line for line in some if line.case == some[0].case and line.attack == UNION]
    return [
        Choice(line, answer_to(line, margin), *_bytes(line.protection, size, codec))
        for line in sorted(unions, key=lambda line: cost_rank(line.protection))
    ]


def cost_rank(protection: Protection) -> tuple[int, float, float]:
    """The order in which protections are tried: a plain remainder, noise, withheld, ratio 1.

    Returns:
        Its place: first what it costs in accuracy, then in encryption.
    """
    kind, _, scale = protection.remainder.partition(":")
    if protection == FULL_ENCRYPTION:
        return 3, 1.0, 0.0
    rank = 0 if kind == PLAIN else 2 if kind == WITHHELD else 1
    return rank, float(scale or 0), protection.ratio


def answer_to(line: VerdictRow, margin: float = MARGIN) -> Answer:
    """What the union of all attacks says about a protection.

    What is found leaks, whatever found it; that nothing is found counts where an attack works. The
    interval of a score counts from 8 victims on: that of one is a point, whatever the others are.
    """
    if line.protection == FULL_ENCRYPTION or line.remainder == WITHHELD:
        return "holds"
    enough = line.victims >= FEWEST
    if line.is_noise(margin):
        return "holds" if line.works and enough else "open"
    return "leaks" if line.identified > 0 or (enough and line.excess.low > margin) else "open"


def cheapest_first(
    protections: Sequence[Protection],
    attacks: Sequence[str],
    victims: int,
    known: Known,
    holds: Callable[[Protection], bool],
    case: str = WORST,
) -> Iterator[Trial]:
    """The trials that find the cheapest protection that holds, and no more.

    Anchors come first, and nothing else where no attack works with nothing encrypted. Then each
    protection is attacked, victim by victim, until a victim is told from others, which refutes it;
    the first that is not refuted and that the verdict confirms is the last.

    Args:
        protections: what may be chosen.
        attacks: names, the cheap ones first.
        victims: how many there are.
        known: outcomes so far; grows while the trials are run.
        holds: what the verdict says, asked when all victims of a protection were attacked.
        case: what their clients do.

    Yields:
        Trials.
    """
    yield from trials_of([NO_ENCRYPTION, FULL_ENCRYPTION], attacks, victims, case)
    some = [known[t][0] for t in known if (t.case, t.protection) == (case, NO_ENCRYPTION)]
    if not any(works_at(name, [o for o in some if o.trial.attack == name]) for name in attacks):
        return  # no failure would say anything
    closed = trials_of([FULL_ENCRYPTION], attacks, victims, case)
    by_chance = {trial.image for trial in closed if trial in known and known[trial][0].identified}
    for protection in sorted({*protections} - {NO_ENCRYPTION, FULL_ENCRYPTION}, key=cost_rank):
        for trial in trials_of([protection], attacks, victims, case):
            yield trial
            if trial.image not in by_chance and trial in known and known[trial][0].identified:
                break
        else:
            if holds(protection):
                return


def real_trials(
    protections: Sequence[Protection],
    attacks: Sequence[str],
    study: AttackStudy,
    known: Known,
    case: str,
) -> Iterator[Trial]:
    """The trials of a case beside the worst one: of masks only where an update leaks without.

    Of each policy the smallest ratio is tried.

    Args:
        protections: of the worst case.
        attacks: names; those that apply.
        study: the study.
        known: outcomes so far; grows while the trials are run.
        case: what the client does.

    Yields:
        Trials.
    """
    count = study.count(case)
    own = [name for name in attacks if study.applies(name, case)]
    anchors = trials_of([NO_ENCRYPTION, FULL_ENCRYPTION], own, count, case)
    yield from anchors
    some = [known[t][0] for t in anchors if t in known and t.protection == NO_ENCRYPTION]
    prior = study.prior(case)
    if any(o.identified or o.score > prior[o.trial.image] + MARGIN for o in some):
        smallest: dict[str, Protection] = {}
        for each in protections:
            if 0 < each.ratio < 1 and each.remainder == PLAIN:
                best = smallest.setdefault(each.policy, each)
                smallest[each.policy] = min(best, each, key=cost_rank)
        yield from trials_of(list(smallest.values()), own, count, case)


def recommended(found: Sequence[Choice]) -> Choice | None:
    """The cheapest protection that holds; everything encrypted where no attack works.

    Args:
        found: the choices, from cheap to dear.

    Returns:
        The choice; None where nothing that was tried holds.
    """
    trusted = any(each.line.works for each in found)
    fit = (each for each in found if trusted or each.protection == FULL_ENCRYPTION)
    return next((each for each in fit if each.answer == "holds"), None)


def recommendation(found: Sequence[Choice], confidence: float) -> str:
    """What to choose, in a few sentences: the same whichever command says it.

    Args:
        found: the choices, from cheap to dear.
        confidence: of the intervals.

    Returns:
        The text.
    """
    if not any(each.line.works for each in found):
        leaks = _named(found, "leaks")
        return VOID + (f" They find something behind {', '.join(leaks)}." if leaks else "")
    victims = max(each.line.victims for each in found)
    undecided = _named(found, "open")
    rest = f" and {len(undecided) - NAMED} more" if len(undecided) > NAMED else ""
    best = recommended(found)
    more = ""
    if undecided:
        more = (
            f" Not decided with {victims} attacked: {', '.join(undecided[:NAMED])}{rest}; attack "
            f"more (--images, at least {FEWEST}), in a new folder."
        )
    if best is None:
        return f"Nothing that was tried can be recommended.{more}"
    if best.protection == FULL_ENCRYPTION:
        return (
            f"Only ratio 1: no smaller mask tried holds at a confidence of {confidence:g}. "
            f"{_cost(best)} for a client and round.{_weakest(found, confidence)}{more}"
        )
    if best.protection.remainder != PLAIN:
        more = f" A remainder that is not plain costs accuracy: measure it in a run.{more}"
    if best.protection.remainder == WITHHELD:
        reason = "no value but encrypted ones is sent, so that there is nothing to attack"
    else:
        reason = (
            f"no attack tried is above a guess without any update at a confidence of "
            f"{confidence:g}; {power(best.line, confidence)}"
        )
    whole = next((each for each in found if each.protection == FULL_ENCRYPTION), None)
    other = f", {_cost(whole)}," if whole else ""
    if whole and whole.bytes_up + whole.bytes_down <= best.bytes_up + best.bytes_down:
        other += " sends no more bytes than that and"
    return (
        f"{best.protection}: {reason}. {_cost(best)} for a client and round. Labels and membership "
        f"are tables of their own. Ratio 1{other} needs no belief in the attacks.{more}"
    )


def _named(found: Iterable[Choice], answer: Answer) -> list[str]:
    """The protections with an answer, but that of none at all."""
    some = (each.protection for each in found if each.answer == answer)
    return [str(protection) for protection in some if protection != NO_ENCRYPTION]


def _cost(choice: Choice) -> str:
    return f"{choice.bytes_up / 1e6:.3g} MB up and {choice.bytes_down / 1e6:.3g} MB down"


def _weakest(found: Iterable[Choice], confidence: float) -> str:
    """What is known of the masks that leak, of which one found victim refutes each."""
    seen = [each.line.certain for each in found if each.answer == "leaks" and each.line.identified]
    if not seen:
        return ""
    return (
        f" Behind each that leaks, at least {min(seen):.1%} of all are found, at a confidence of "
        f"{confidence:.0%}."
    )


def power(line: VerdictRow, confidence: float) -> str:
    """What so few victims can tell: "none of 8 found allows for up to 31 % at 95 %"."""
    hits = round(line.identified * line.victims)
    some = "none" if not hits else str(hits)
    return (
        f"{some} of {line.victims} found allows for up to {line.possible:.0%} of all at "
        f"{confidence:.0%}"
    )


def _bytes(protection: Protection, size: int, codec: CkksParameters) -> tuple[float, float]:
    count = mask_count(protection.ratio, size)
    return traffic(codec, size, count, withheld=protection.remainder == WITHHELD)
