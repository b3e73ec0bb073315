"""Blame: which client spoils sums, found by cohorts of fresh rounds.

A client that holds the key can encrypt nonsense with right tags, and the server opens no upload, so
that nothing but the refusal of a sum tells. Group testing over fresh training finds who it was:
a refused sum holds a culprit, an accepted one clears nobody, since a culprit may behave now and
then. It shows, though, that clients do not refuse for a reason of their own, so nobody is named
before a sum without it was accepted. The next cohort leaves out a random half of the clients that
could explain all refused sums.
No upload is used twice and no sum of a part of a cohort is opened, so nobody learns more than
ordinary sampling tells.
"""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Collection

from fedsens.errors import PhaseError

logger = logging.getLogger(__name__)

# Refused sums in a row for which a culprit could hardly have been in every cohort by chance.
PATIENCE, FOR_EACH_HALVING = 8, 4
AT_ONCE = 2  # clients that may spoil sums in one run and are still told apart


class Blame:
    """The refused sums of a run, and whom they leave as an explanation.

    Attributes:
        refused: the contributors of every refused sum, by name.
    """

    def __init__(self, least: int, seed: int = 0) -> None:
        """Suspect nobody.

        Args:
            least: clients that a cohort needs.
            seed: of the choice of cohorts.
        """
        self.refused: list[frozenset[str]] = []
        self._least, self._random = least, random.Random(seed)
        self._explanations: list[frozenset[str]] = []
        self._accepted: set[frozenset[str]] = set()
        self._named, self._in_a_row = frozenset[str](), 0

    @property
    def excluded(self) -> frozenset[str]:
        """Who is left out for good, unless a later refused sum says that it was not them."""
        only = self._explanations[0] if len(self._explanations) == 1 else frozenset()
        without = any(not only & each for each in self._accepted)
        return only if without else frozenset()

    def accept(self, contributors: Collection[str]) -> None:
        """Take note of a sum that clients accept.

        Args:
            contributors: the names of the clients whose uploads are in it.
        """
        self._in_a_row = 0
        if self.refused and contributors:
            self._accepted.add(frozenset(contributors))
            self._tell()

    def refuse(self, contributors: Collection[str]) -> None:
        """Take note of a sum that clients refuse.

        Args:
            contributors: the names of the clients whose uploads are in it.

        Raises:
            PhaseError: no one or two clients were in all of the refused sums, so that it is not
                their doing.
        """
        self.refused.append(frozenset(contributors))
        self._in_a_row += 1
        self._explanations = explanations(self.refused)
        everybody = len(frozenset().union(*self.refused))
        patience = PATIENCE + FOR_EACH_HALVING * max(1, everybody).bit_length()
        if not self._explanations or self._in_a_row > patience:
            raise PhaseError(
                f"expected one or {AT_ONCE} clients to explain the {len(self.refused)} sums that "
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

        Args:
            names: the clients that could be in it.

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
        half = (len(suspects) + self._random.randint(0, 1)) // 2
        count = max(0, min(half, len(names) - self._least))
        return frozenset(self._random.sample(suspects, count))


def explanations(refused: Collection[frozenset[str]]) -> list[frozenset[str]]:
    """The smallest sets of clients of which every refused sum holds one.

    Args:
        refused: the contributors of each refused sum.

    Returns:
        All sets of the smallest size that has any, up to :data:`AT_ONCE` clients.
    """
    everybody = sorted(frozenset().union(*refused))
    shortest = min(refused, key=lambda each: len(each), default=frozenset[str]())
    first = sorted(shortest)  # one of these is in every explanation
    for size in range(1, AT_ONCE + 1):
        others = itertools.combinations(everybody, size - 1)
        sets = dict.fromkeys(
            frozenset((one, *rest)) for rest in others for one in first if one not in rest
        )
        if found := [each for each in sets if all(each & one for one in refused)]:
            return found
    return []
