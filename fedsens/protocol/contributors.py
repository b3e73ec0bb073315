"""Contributors: whose updates went into an aggregate, with which weights, as the server says it.

The list alone proves nothing. A client believes it once the tags inside the ciphertext agree with
it (:mod:`fedsens.protocol.tags`), which the server can neither read nor make.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Collection
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from fedsens.crypto import CkksParameters
from fedsens.errors import ContributorsError, ProtocolError
from fedsens.protocol.tags import forgery_bits

LEAST = 2  # contributors that a client accepts by default
LEAST_BITS = 24  # a contributor counts if its share could be made up once in 2^24 attempts

# A node's number, or the public key of a client with an identity file of its own.
Name = Annotated[str, Field(pattern="^[0-9a-f]{1,64}$")]


IDENTITY = 64  # hexadecimal digits of a public key; a node's number is shorter


def check_name(name: str, node: int, known: Collection[str]) -> None:
    """Refuse a name that a client has taken from another one; the server's half.

    Args:
        name: by which a client says that it tagged its values.
        node: the client's number.
        known: names of the answers before.

    Raises:
        ProtocolError: it is another node's number, or it came before.
    """
    if len(name) < IDENTITY and name != str(node):
        raise ProtocolError(f"expected the contributor {node} or a public key, got {name}")
    if name in known:
        raise ProtocolError("expected one answer from each contributor, got a second one")


# Beyond 2^53 no number of examples is exact, and sums of far larger ones overflow.
MOST_WEIGHT = 2.0**53
Weight = Annotated[float, Field(ge=-MOST_WEIGHT, le=MOST_WEIGHT, allow_inf_nan=False)]


class Contributors(BaseModel):
    """Who contributed to an aggregate; ``names[i]`` with ``weights[i]``.

    Attributes:
        run: the Flower run in which they did.
        reference: N_ref of that round; a weight is examples / N_ref.
        names: the contributors.
        weights: the factors of their values.
        moved: whether a client has encrypted the aggregate anew since, with weight 1, after it
            had checked it (key rotation).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str = Field(pattern="^[0-9]{1,20}$")
    reference: float = Field(gt=0, allow_inf_nan=False)
    names: tuple[Name, ...]
    weights: tuple[Weight, ...]
    moved: bool = False

    @property
    def summands(self) -> dict[str, float]:
        """Name to weight of whoever encrypted what lies in the ciphertext."""
        if self.moved:
            return {self.digest: 1.0}
        return dict(zip(self.names, self.weights, strict=True))

    @property
    def weight(self) -> float:
        """The factor of the decrypted values."""
        return 1.0 if self.moved else math.fsum(self.weights)

    @property
    def digest(self) -> str:
        """64 hexadecimal digits that are equal exactly for the same list, moved or not."""
        text = self.model_copy(update={"moved": False}).model_dump_json()
        return hashlib.sha256(b"fedsens contributors 1" + text.encode()).hexdigest()

    def after_move(self) -> Self:
        """The list for the same aggregate once a client has encrypted it anew."""
        return self.model_copy(update={"moved": True})

    def check(
        self,
        weight: float,
        parameters: CkksParameters,
        least: int = LEAST,
        members: frozenset[str] | None = None,
    ) -> None:
        """Refuse a list that cannot be right, or with too few contributors.

        A contributor counts if leaving it out would show: its share of a tag must be so far above
        the error of the codec that to make up for it succeeds once in 2^24 attempts at most.

        Args:
            weight: what the decrypted values are to be divided by.
            parameters: of the ciphertext.
            least: the fewest contributors that count.
            members: names that count, those of a pinned roster; None if all do.

        Raises:
            ContributorsError: lists everything that is wrong.
        """
        problems = [
            f"{name[:16]} {times} times" for name, times in Counter(self.names).items() if times > 1
        ]
        if len(self.names) != len(self.weights):
            problems.append(f"{len(self.names)} names with {len(self.weights)} weights")
        if not all(weight > 0 for weight in self.weights):
            problems.append("a weight that is not positive")
        elif not math.isclose(self.weight, weight, rel_tol=1e-9):
            problems.append("weights that do not add up to the aggregate's")
        if problems:
            raise ContributorsError(
                f"expected different contributors with their weights, got {'; '.join(problems)}"
            )
        bits = [forgery_bits(parameters, len(self.names), each) for each in self.weights]
        counted = sum(
            enough >= LEAST_BITS and (members is None or name in members)
            for name, enough in zip(self.names, bits, strict=True)
        )
        if counted < least:
            raise ContributorsError(
                f"expected an aggregate of at least {least} contributors"
                f"{' of the pinned roster' if members is not None else ''}, got {counted} (of "
                f"{len(self.names)} named); wait for more clients, or lower "
                "fedsens-min-contributors on this client"
            )
