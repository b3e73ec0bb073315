"""Aggregate: a sum of uploads with everything that a key holder needs to open it.

It is what the server holds of the masked coordinates, and nothing in it opens: the ciphertext is
under the sum of the contributors' one-time secrets, and that sum travels under pads that only
holders of the key K can take off.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from fedsens.crypto import CkksParameters, Opens
from fedsens.errors import ProtocolError
from fedsens.protocol._context import Fingerprint, RoundContext
from fedsens.protocol._contributors import Contributors

KEY_BYTES = 2 * 4096  #: a padded secret: N numbers modulo 2^16
TAG_BITS = 96  # a sum is forged with probability at most 2^-TAG_BITS
Tags = tuple[int, ...]


class AggregateHeader(BaseModel):
    """What is said about an aggregate, in headers, files and checkpoints.

    Attributes:
        context: what the uploads were bound to.
        contributors: the list S of those whose uploads were added.
        tags: the sum of their tags, modulo the wire modulus.
        fingerprint: of the key that tags and pads are made with: that of the context, or a later
            one since the key was rotated.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    context: RoundContext
    contributors: Contributors
    tags: Tags = Field(max_length=16)
    fingerprint: Fingerprint

    @property
    def weight(self) -> float:
        """What the decrypted values are to be divided by."""
        return self.contributors.weight

    @property
    def rekeyed(self) -> bool:
        """Whether tags and pads were made anew under a later key."""
        return self.fingerprint != self.context.fingerprint


@dataclass(frozen=True)
class Aggregate:
    """A sum of uploads.

    Attributes:
        header: what it was made of.
        ciphertext: the sum of the ciphertexts.
        key_sum: the sum of the one-time secrets, under pads.
    """

    header: AggregateHeader
    ciphertext: bytes
    key_sum: bytes

    def __post_init__(self) -> None:
        if len(self.key_sum) != KEY_BYTES:
            raise ProtocolError(
                f"expected a key sum of {KEY_BYTES} bytes, got {len(self.key_sum)}; use the same "
                "fedsens version everywhere"
            )


def sum_answers(answers: Iterable[bytes]) -> bytes:
    """The sum of the padded keys of a list (:mod:`fedsens.keys` makes them), modulo 2^16.

    Args:
        answers: of all contributors of a list, each of 2 N bytes.

    Returns:
        The sum, in which the pairwise pads have cancelled.
    """
    total = np.zeros(KEY_BYTES // 2, np.uint16)
    for answer in answers:
        total += np.frombuffer(answer, "<u2")
    return total.astype("<u2").tobytes()


def plausible_mean(
    values: NDArray[np.floating], parameters: CkksParameters, contributors: Contributors
) -> bool:
    """Whether honest clients, whose every block is within R, can have made a mean.

    The root mean square of a block of a weighted mean is at most the largest one of its
    contributions (convexity), so at most R, plus the codec's error. A single value may exceed R.

    Args:
        values: the mean.
        parameters: of its ciphertext.
        contributors: the list.

    Returns:
        Whether every block is within that range; NaN and infinity are not.
    """
    error = parameters.error_bound(len(contributors.members)) / contributors.weight
    limit = parameters.degree * (parameters.value_range + error) ** 2
    step = parameters.degree
    blocks = (values[low : low + step].astype(float) for low in range(0, len(values), step))
    return all(float(block @ block) <= limit < math.inf for block in blocks)


def tag_count(parameters: CkksParameters, opens: Opens = "clients") -> int:
    """How many tags a ciphertext has; each is forged with probability 2/p (:mod:`fedsens.keys`).

    None where the server opens: it adds up the sum itself, and there is no key to make them with.
    """
    if opens == "server":
        return 0
    return -(-TAG_BITS // (parameters.wire_modulus.bit_length() - 2))
