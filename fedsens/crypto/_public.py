"""Public polynomials: what all who encrypt in one context share, and nobody chooses."""

from __future__ import annotations

import hashlib

import numpy as np

from fedsens.crypto._parameters import DEGREE, MODULUS, CkksParameters
from fedsens.crypto._wire import Words
from fedsens.errors import ConfigurationError

# The largest multiple of q in 64 bits: numbers below it are uniform modulo q, others are skipped.
LIMIT = 2**64 - 2**64 % MODULUS


def check_context(context: bytes) -> bytes:
    """The context if it is bytes: a number would pass as so many zeros in ``bytes(context)``."""
    if not isinstance(context, bytes):
        raise ConfigurationError(
            f"expected the context as bytes, got {type(context).__name__}; encode what all who "
            "add up agree on"
        )
    return context


def public_polynomial(parameters: CkksParameters, context: bytes, index: int) -> Words:
    """The public polynomial a_j of block j, transformed: N residues modulo q.

    As ML-KEM samples its matrix (FIPS 203, algorithm 7): SHAKE-128 of the agreed bytes, read as
    numbers of which those that are not below a multiple of q are skipped. The transform of a
    uniform polynomial is uniform, so it is drawn transformed, as SEAL needs it.
    """
    head = b"fedsens public polynomial 3" + parameters.digest + len(context).to_bytes(8, "little")
    stream = hashlib.shake_128(head + context + index.to_bytes(8, "little"))
    count = DEGREE + 64  # one of 1,024 is skipped
    while True:
        numbers = np.frombuffer(stream.digest(8 * count), "<u8")
        uniform = numbers[numbers < LIMIT][:DEGREE]
        if len(uniform) == DEGREE:
            return uniform % np.uint64(MODULUS)
        count *= 2
