"""Who takes part in a sum: the cohort that is asked, and the list of those whose uploads count.

The server states both. Neither proves anything by itself: the cohort is bound into everything that
a client derives for its upload (:mod:`fedsens.protocol._context`), and the list into the pads of
the key answers and into the tags, so clients that were told different things produce uploads that
do not open.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from fedsens.errors import ContributorsError, ProtocolError

#: contributors that a client accepts by default: in a sum of two each learns the other
LEAST_CONTRIBUTORS = 3
MOST_CONTRIBUTORS = 100_000  # beyond, the sum of the secrets might no longer fit into 16 bits

# Shares of what all clients of the round announced; with less the codec's error is what one reads.
LEAST_WEIGHT = 2.0**-10

# An X25519 public key, hexadecimal: the client's identity, or the one it made for this run.
PublicKey = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Nonce = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
# The weights of a round add up to one if clients train on what they announced; the codec and the
# mean stay sound a little beyond.
MOST_WEIGHT = 2.0
Weight = Annotated[float, Field(gt=0, le=MOST_WEIGHT, allow_inf_nan=False)]


class Party(BaseModel):
    """A client that is asked for an upload.

    Attributes:
        name: its identity P, which lasts; a pinned roster lists these.
        run_key: its identity E of this run alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: PublicKey
    run_key: PublicKey


def cohort_digest(cohort: Iterable[Party]) -> str:
    """SHA-256 (hexadecimal) of a cohort, in ascending order of the names."""
    pairs = sorted((party.name, party.run_key) for party in cohort)
    text = b"".join(bytes.fromhex(name) + bytes.fromhex(run_key) for name, run_key in pairs)
    return hashlib.sha256(b"fedsens cohort 3" + text).hexdigest()


class Contributor(BaseModel):
    """A client whose upload is in a sum.

    Attributes:
        name: its identity P.
        weight: the factor of its values, examples / N_ref.
        nonce: 16 random bytes of its upload.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: PublicKey
    weight: Weight
    nonce: Nonce

    def to_bytes(self) -> bytes:
        """The canonical 56 bytes."""
        parts = bytes.fromhex(self.name), struct.pack("<d", self.weight), bytes.fromhex(self.nonce)
        return b"".join(parts)


class Contributors(BaseModel):
    """The list S: whose uploads a sum was made of.

    Attributes:
        members: the contributors, in ascending order of their names.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    members: tuple[Contributor, ...] = Field(max_length=MOST_CONTRIBUTORS)

    @classmethod
    def of(cls, members: Iterable[Contributor]) -> Self:
        """The list of some contributors, in canonical order."""
        return cls(members=tuple(sorted(members, key=lambda each: each.name)))

    @property
    def names(self) -> tuple[str, ...]:
        """The contributors' names."""
        return tuple(each.name for each in self.members)

    @property
    def weight(self) -> float:
        """The factor of the decrypted values: the sum of the weights."""
        return math.fsum(each.weight for each in self.members)

    def digest(self, context: bytes) -> bytes:
        """SHA-256 of the list within a context; key answers and their pads are bound to it.

        Args:
            context: D, the digest of a :class:`~fedsens.protocol.RoundContext`.

        Returns:
            32 bytes.
        """
        body = b"".join(each.to_bytes() for each in self.members)
        return hashlib.sha256(b"fedsens list 3" + context + body).digest()

    def check(self, least: int = LEAST_CONTRIBUTORS, roster: frozenset[str] | None = None) -> None:
        """Refuse a list that cannot be right, with too few contributors, or of too unlike weights.

        Args:
            least: the fewest contributors that count.
            roster: names that count, those of a pinned roster; None if all do.

        Raises:
            ContributorsError: lists everything that is wrong.
        """
        problems = [
            f"{name[:16]} {times} times" for name, times in Counter(self.names).items() if times > 1
        ]
        if list(self.names) != sorted(self.names):
            problems.append("names out of order")
        if problems:
            raise ContributorsError(
                f"expected different contributors in ascending order, got {'; '.join(problems)}"
            )
        counted = sum(roster is None or name in roster for name in self.names)
        if counted < least:
            raise ContributorsError(
                f"expected a sum over at least {least} contributors"
                f"{' of the pinned roster' if roster is not None else ''}, got {counted} (of "
                f"{len(self.names)} named); wait for more clients, or lower "
                "fedsens-min-contributors on this client"
            )
        effective = effective_number(
            each.weight for each in self.members if roster is None or each.name in roster
        )
        if effective < least / 2:
            raise ContributorsError(
                f"expected contributors of which none outweighs the others, an effective number "
                f"(sum of weights)^2 / (sum of squares) of at least {least / 2:g}, got "
                f"{effective:.3g}: the sum is nearly one client's value; have the clients count "
                "fewer examples of the large one, or lower fedsens-min-contributors on this client"
            )
        if self.members and self.weight < LEAST_WEIGHT:
            raise ContributorsError(
                f"expected contributors with at least {LEAST_WEIGHT:.1g} of the examples that the "
                f"round was planned for, got {self.weight:.1g}: their sum would drown in the "
                "codec's error; sample fewer clients, or mend those that do not answer"
            )

    @staticmethod
    def outweighing(weights: Mapping[int, float], least: int) -> frozenset[int]:
        """Who must be left out so that :meth:`check` does not refuse nearly one client's value.

        Args:
            weights: node to weight, or to number of examples.
            least: the fewest contributors that clients accept.

        Returns:
            The heaviest, as few as it takes.
        """
        rest = dict(weights)
        while len(rest) > 1 and effective_number(rest.values()) < least / 2:
            del rest[max(rest, key=rest.__getitem__)]
        return frozenset(weights) - frozenset(rest)


def effective_number(weights: Iterable[float]) -> float:
    """How many equal weights say as much: (sum of weights)^2 / (sum of squares); 0 of none."""
    some = list(weights)
    squares = math.fsum(weight**2 for weight in some)
    return math.fsum(some) ** 2 / squares if squares else 0.0


def check_weight(weight: float) -> None:
    """Refuse an answer that weighs more than the whole round was planned to.

    Args:
        weight: examples / N_ref.

    Raises:
        ProtocolError: it does.
    """
    if weight > MOST_WEIGHT:
        raise ProtocolError(
            f"expected at most {MOST_WEIGHT:g} times the examples that all clients of the round "
            "announced together, got more; announce in install() what training counts"
        )
