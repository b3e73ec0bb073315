"""Which client misbehaves in which round, and how: the same for the same seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

AWAY, RAISES = "away", "its function raises"
NOT_FINITE, OTHER_SHAPE = "trained to NaN", "trained another shape"  # its own client refuses
TWICE = "answers twice"  # is counted once
NO_KEY = "gives no key"  # after its update was added, which voids the round
# One client does either in every second round from some round on, until it is found and excluded.
WRONG_TAG, WRONG_KEY = "spoils the sum by its tags", "spoils the sum by its key"
SPOILS, BEFORE_SPOILING = (WRONG_TAG, WRONG_KEY), 4
HOSTILE = (
    "another context",
    "replayed answer",
    "another client's name",
    "tags beyond the modulus",
    "other parameters",
    "cut ciphertext",
    "flipped bit",
    "a sum as ciphertext",
    "no ciphertext",
    "infinite values",
    "another shape",
    "negative examples",
    "other examples than weighted",
    "further metrics",
)
FAILURES = (AWAY, RAISES, NOT_FINITE, OTHER_SHAPE)
KINDS = (*FAILURES, *HOSTILE, TWICE, NO_KEY)


@dataclass(frozen=True)
class Schedule:
    """Draws what is wrong with a client in a round.

    Attributes:
        seed: of all draws.
        share: probability that something is wrong; half of it is to be away.
        begins: the first round in which anything is.
        spoiler: the client that spoils sums; None if there is none.
    """

    seed: int
    share: float = 0.1
    begins: int = 1
    spoiler: int | None = None

    def of(self, server_round: int, node: int) -> str | None:
        """What is wrong.

        Args:
            server_round: the round.
            node: the client.

        Returns:
            One of :data:`KINDS` or :data:`SPOILS`, None if the client is honest.
        """
        draw = random.Random(f"{self.seed} {server_round} {node}")
        if node == self.spoiler:
            late = server_round > BEFORE_SPOILING
            return draw.choice(SPOILS) if late and draw.random() < 0.5 else None
        if server_round < self.begins or draw.random() >= self.share:
            return None
        return AWAY if draw.random() < 0.5 else draw.choice(KINDS[1:])
