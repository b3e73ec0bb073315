"""Groups: the clients of a round in several sums, whose means a robust strategy can compare.

Each group is a cohort of its own with a context, a list and a sum of its own, so that a client
sees no difference, and its owner's minimum of contributors holds for its group. The server learns
the mean of each group. A robust strategy gets these means as if each were one client's answer
("bucketing", Karimireddy, He and Jaggi 2022): a poisoner spoils one of them.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Bulyan, FedMedian, FedTrimmedAvg, Krum, MultiKrum, Strategy

from fedsens.errors import PhaseError
from fedsens.flower._phase import Phase
from fedsens.flower._updates import RecordSchema, RoundResult, Updates
from fedsens.flower._uploads import collect_keys

logger = logging.getLogger(__name__)

T = TypeVar("T")
COMPARE = (Bulyan, FedMedian, FedTrimmedAvg, Krum, MultiKrum)  # answers with each other


def least_groups(strategy: Strategy) -> int:
    """The fewest groups with which a robust strategy tolerates a spoilt one, or as many as it says.

    Returns:
        2 f + 3 for Krum and Multi-Krum (Blanchard et al. 2017) and 4 f + 3 for Bulyan (El Mhamdi et
        al. 2018), f being ``num_malicious_nodes``; for a trimmed mean as many as it takes to cut
        one at each end; else 3.
    """
    malicious = int(getattr(strategy, "num_malicious_nodes", 0))
    if isinstance(strategy, Bulyan):
        return 4 * malicious + 3
    if isinstance(strategy, Krum | MultiKrum):
        return 2 * malicious + 3
    if isinstance(strategy, FedTrimmedAvg) and strategy.beta > 0:
        return max(3, math.ceil(1 / strategy.beta))
    return 3


def split(messages: Sequence[T], groups: int, least: int, seed: Sequence[int]) -> list[list[T]]:
    """Divide the clients of a round, or messages to them, at random, as evenly as can be.

    Returns:
        Those of each group; none where the clients are too few.
    """
    if len(messages) < groups * least:
        return []
    order = np.random.default_rng(seed).permutation(len(messages))
    return [[messages[i] for i in sorted(part)] for part in np.array_split(order, groups)]


class RoundUpdates:
    """The updates of a round, those of each group in a sum of its own.

    Attributes:
        gave: nodes whose keys came.
        withheld: nodes for whose sake a sum is void: no key, a wrong update, too large a weight.
        void: why sums are void, of each that is.
        contributors: the fewest of any sum whose keys were asked for; 0 where there is none.
    """

    def __init__(
        self, phase: Phase, make: Callable[[Phase], Updates], asking: Callable[[int], None]
    ) -> None:
        """Begin a sum for each group.

        Args:
            phase: the question, which has been sent.
            make: makes the sum of a group.
            asking: called with ``contributors`` before anybody is asked for a key.
        """
        self._asking = asking
        self._phase, self.contributors = phase, 0
        self.gave, self.withheld = frozenset[int](), frozenset[int]()
        self.void: list[PhaseError] = []
        self._parts = [make(each) for each in phase.parts]
        self._part_of = {
            sent.dst_node_id: part
            for each, part in zip(phase.parts, self._parts, strict=True)
            for sent in each.sent
        }

    def take(self, node: int, reply: Message) -> bool:
        """Check one answer and add it to its group's sum; see :meth:`Updates.take`."""
        return self._part_of[node].take(node, reply)

    @property
    def refused(self) -> int:
        """Answers that were left out as wrong."""
        return sum(each.refused for each in self._parts)

    @property
    def reasons(self) -> dict[int, str]:
        """Node to why its answer was left out."""
        return {node: text for each in self._parts for node, text in each.reasons.items()}

    @property
    def schema(self) -> RecordSchema | None:
        """The schema that counts in most groups; None where nobody answered."""
        schemas = Counter(each.schema for each in self._parts if each.schema is not None)
        return schemas.most_common(1)[0][0] if schemas else None

    def seconds(self) -> dict[str, float]:
        """CPU seconds of the server to add, and of a client to encrypt and decrypt (mean)."""
        each = [part.seconds() for part in self._parts]
        total = {name: sum(one[name] for one in each) for name in each[0]}
        clients = {name: total[name] / len(each) for name in total if name != "add_seconds"}
        return total | clients

    def results(self, grid: Grid, least: int, timeout: float) -> list[RoundResult]:
        """Collect the keys of all groups at once, and open or close their sums.

        A group without its keys, or whose sum holds nonsense, is void by name and the others count.

        Args:
            grid: Flower's grid.
            least: updates that a group needs; with fewer nobody is asked for a key.
            timeout: deadline for the keys in seconds.

        Returns:
            The result of each group that is not void.
        """
        sums = [total for part in self._parts if (total := part.settle(least)) is not None]
        if sums:
            self.contributors = min(len(each.headers) for each in sums)
            self._asking(self.contributors)
            name = self._phase.name, self._phase.round
            self._phase.absorb(collect_keys(grid, name, sums, timeout))
        self.gave = frozenset(node for each in sums for node in each.answers)
        results = []
        for number, part in enumerate(self._parts, 1):
            try:
                result = part.result(least)
            except PhaseError as error:
                self.void.append(error)
                self.withheld |= error.nodes
                self._warn(number, str(error))
            else:
                results.append(result)
                if len(result.replies) < least:
                    self.withheld |= part.reasons.keys()
                    self._warn(number, f"{len(result.replies)} updates arrived of {least} needed")
        return results

    def _warn(self, number: int, why: str) -> None:
        if len(self._parts) > 1:
            logger.warning("group %d of %d is void: %s", number, len(self._parts), why)
