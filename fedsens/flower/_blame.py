"""Blame: which client spoils sums or withholds keys, found by what became of the sums it was in.

A client that holds the key can encrypt nonsense with right tags, and the server opens no upload, so
that nothing but the refusal of a sum tells. Group testing over fresh training finds who it was:
a refused sum holds a culprit, an accepted one clears nobody, since a culprit may behave now and
then. It shows, though, that clients do not refuse for a reason of their own, so nobody is named
before a sum without it was accepted. The next cohort leaves out a random half of the clients that
could explain all refused sums.
No upload is used twice and no sum of a part of a cohort is opened, so nobody learns more than
ordinary sampling tells. Groups that are summed apart are evidence of the same kind, and more of it.

Who gives no key is known at once, but not why: see :class:`LostKeys`.
"""

from __future__ import annotations

import itertools
import logging
import random
from collections import Counter
from collections.abc import Collection

from fedsens.errors import PhaseError

logger = logging.getLogger(__name__)

# Refused sums in a row for which a culprit could hardly have been in every cohort by chance.
PATIENCE, FOR_EACH_HALVING = 8, 4
AT_ONCE = 2  # clients that may spoil sums in one run and are still told apart
# Of a withheld key, how much of it a key that is given makes up for. A client that loses up to
# 22 % of its keys at random is then away for a bounded time on average, since its debt exceeds d
# with a probability below 2^-d, and one that withholds more than a third is away ever longer.
FORGIVEN = 0.5


class Blame:
    """The refused sums of a run, and whom they leave as an explanation.

    Attributes:
        refused: the contributors of every refused sum, by name.
    """

    def __init__(self, least: int, seed: int = 0) -> None:
        """Suspect nobody."""
        self.refused: list[frozenset[str]] = []
        self._least, self._random = least, random.Random(seed)
        self._explanations: list[frozenset[str]] = []
        self._accepted: set[frozenset[str]] = set()
        self._named, self._in_a_row = frozenset[str](), 0

    @property
    def excluded(self) -> frozenset[str]:
        """Who is left out for good, unless a later refused sum says that it was not them."""
        only = self._explanations[0] if len(self._explanations) == 1 else frozenset()
        # A sum that was accepted without them shows that clients do accept what others send.
        without = any(not only & each for each in self._accepted)
        return only if without else frozenset()

    def accept(self, contributors: Collection[str]) -> None:
        """Take note of a sum that clients accept.

        Args:
            contributors: the names of the clients whose uploads are in it; none of a model that
                was accepted before.
        """
        if not contributors:
            return
        self._in_a_row = 0
        if self.refused:
            self._accepted.add(frozenset(contributors))
            self._tell()

    def refuse(self, contributors: Collection[str]) -> None:
        """Take note of a sum that clients refuse.

        Args:
            contributors: the names of the clients whose uploads are in it.

        Raises:
            PhaseError: no one or two clients were in all of the refused sums, so that it is not
                their doing. The search has then begun anew with this sum.
        """
        if self.excluded & frozenset(contributors):
            return  # nobody could be spared in its place, and this says nothing new
        self.refused.append(frozenset(contributors))
        self._in_a_row += 1
        self._explanations = explanations(self.refused)
        # Every cohort leaves out half of the suspects, so log2(n) refusals in a row name somebody
        # who is in each of them; many more are no longer the doing of one or two clients.
        everybody = len(frozenset().union(*self.refused))
        patience = PATIENCE + FOR_EACH_HALVING * max(1, everybody).bit_length()
        if not self._explanations or self._in_a_row > patience:
            count, self.refused = len(self.refused), self.refused[-1:]
            self._explanations, self._in_a_row = explanations(self.refused), 1
            raise PhaseError(
                f"expected one or {AT_ONCE} clients to explain the {count} sums that "
                "were refused, got none who could: more clients deviate, or the clients refuse for "
                "a reason of their own (fedsens-max-norm, training that diverges); see their logs"
            )
        self._tell()

    def _tell(self) -> None:
        if self.excluded and self.excluded != self._named:
            self._named = self.excluded
            logger.warning(
                "excluded from this run: client %s, which %s in each of %d refused sums, and no "
                "other was",
                " and client ".join(sorted(self.excluded)),
                "was" if len(self.excluded) == 1 else "were one or the other",
                len(self.refused),
            )

    def leave_out(self, names: Collection[str]) -> frozenset[str]:
        """Whom to leave out of the next cohort.

        Returns:
            Whoever is excluded, else a random half of those suspected, as far as enough others
            are left.
        """
        if self.excluded:
            return self.excluded & frozenset(names)
        if len(self._explanations) == 1:  # to be seen whether a sum without it is accepted
            (only,) = self._explanations
            spare = max(0, len(names) - self._least)
            return frozenset(sorted(only & frozenset(names))[:spare])
        suspects = sorted(frozenset(names).intersection(*[frozenset().union(*self._explanations)]))
        # Half of an odd number is rounded at random: of three suspects with one of them to spare
        # the same two could be left out for ever.
        half = (len(suspects) + self._random.randint(0, 1)) // 2
        count = max(0, min(half, len(names) - self._least))
        return frozenset(self._random.sample(suspects, count))


class LostKeys:
    """Clients that let a sum be lost, most often for want of a key, and how long each is left out.

    A client that deviates and one whose network fails look alike: an upload came and a key did
    not. So nobody is judged. Whoever withholds a key is left out for about twice as long as the
    time before, and comes back; one that always does costs log2 of a run's rounds.
    """

    def __init__(self) -> None:
        """Know of no such client."""
        self._debts: dict[str, float] = {}
        self._until: dict[str, int] = {}
        self._gave, self._lost = Counter[str](), Counter[str]()

    def note(
        self, server_round: int, gave: Collection[str], withheld: Collection[str]
    ) -> dict[str, str]:
        """Take note of the keys that a round's sums were asked for.

        Args:
            server_round: the round.
            gave: names of the clients whose keys came.
            withheld: names of those for whose sake a sum is void.

        Returns:
            Name to evidence and consequence in words, of those that withheld.
        """
        self._gave.update(list(gave))  # a mapping's values would count
        self._lost.update(list(withheld))
        for name in gave:
            self._debts[name] = max(0.0, self._debts.get(name, 0.0) - FORGIVEN)
        told = {}
        for name in withheld:
            # Asked again before its time, because too few others were there, it owes no more.
            if self._until.get(name, 0) < server_round:
                debt = self._debts[name] = self._debts.get(name, 0.0) + 1
                self._until[name] = server_round + round(2**debt) - 1
            told[name] = (
                f"{self._lost[name]} sums were lost because of it, {self._gave[name]} had its key; "
                f"it is left out up to round {self._until[name]} if enough others take part"
            )
        return told

    def leave_out(self, names: Collection[str], server_round: int, least: int) -> frozenset[str]:
        """Whom to leave out of a round, so that enough are left: who owes least stays first."""
        out = {name for name in names if self._until.get(name, 0) >= server_round}
        while len(names) - len(out) < least and out:
            lowest = min(self._debts[name] for name in out)
            out = {name for name in out if self._debts[name] > lowest}
        return frozenset(out)


def explanations(refused: Collection[frozenset[str]]) -> list[frozenset[str]]:
    """The smallest sets of clients of which every refused sum holds one.

    Returns:
        All sets of the smallest size that has any, up to :data:`AT_ONCE` clients.
    """
    everybody = sorted(frozenset().union(*refused))
    shortest = min(refused, key=lambda each: len(each), default=frozenset[str]())
    # An explanation hits every refused sum, so one of it is in the shortest: with n clients there
    # are at most |shortest| n pairs to try instead of n^2.
    first = sorted(shortest)
    for size in range(1, AT_ONCE + 1):
        others = itertools.combinations(everybody, size - 1)
        sets = dict.fromkeys(
            frozenset((one, *rest)) for rest in others for one in first if one not in rest
        )
        if found := [each for each in sets if all(each & one for one in refused)]:
            return found
    return []
