"""What every encryption multiplies: public polynomials a_j, and a one-time secret s.

All who encrypt in one context share the public polynomials, and nobody chooses them. A secret opens
one upload, or, added to others', the sum of their uploads. Neither needs TenSEAL, so that a client
can pad and send a secret, and add sums, in a process that starts quickly; a secret is drawn in
:mod:`fedsens.crypto._seal`.
"""

from __future__ import annotations

import hashlib
from typing import NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from fedsens.crypto._parameters import DEGREE, LARGEST_ERROR, MODULUS, CkksParameters
from fedsens.crypto._wire import Words
from fedsens.errors import ConfigurationError, KeyMismatchError

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


class OneTimeSecret:
    """The secret of one upload: N small whole numbers, the coefficients of a polynomial.

    They follow SEAL's error distribution (a centred binomial of standard deviation 3.2, at most 21
    in magnitude) instead of the usual ternary one: of two ternary secrets a sum would tell many
    coefficients (1 + 1 is 2 in one way only), whereas a sum of two error-distributed secrets is a
    hint that costs a few bits of security (Hint-RLWE; see Kim, Lee, Seo and Song 2023).

    Instances show nothing secret and refuse to be pickled or copied.
    """

    __slots__ = ("_coefficients", "_contributions")

    def __init__(self, coefficients: NDArray[np.int64], contributions: int) -> None:
        """Wrap checked coefficients; use :meth:`from_array` instead."""
        self._coefficients = coefficients
        self._contributions = contributions

    @classmethod
    def from_array(cls, coefficients: NDArray[np.integer], contributions: int = 1) -> Self:
        """A secret, or a sum of secrets, that was sent or stored as an array.

        Args:
            coefficients: N = 4096 signed whole numbers.
            contributions: of how many secrets they are the sum.

        Returns:
            The secret; it holds a copy.

        Raises:
            KeyMismatchError: they cannot be such a sum.
        """
        array = np.asarray(coefficients)
        most = LARGEST_ERROR * contributions
        whole = array.shape == (DEGREE,) and array.dtype.kind in "iu"
        # Compared from both sides, because the magnitude of the least int64 overflows. A secret of
        # zeros hides nothing, and SEAL refuses to multiply by it.
        low, high = (int(array.min()), int(array.max())) if whole else (0, 0)
        if contributions < 1 or not -most <= low <= high <= most or low == high == 0:
            raise KeyMismatchError(
                f"expected {DEGREE} whole numbers of magnitude at most {LARGEST_ERROR} for each of "
                f"{contributions} secrets, got {array.dtype} of shape {array.shape} that cannot be "
                "their sum; add the secrets of exactly those whose uploads were added"
            )
        return cls(array.astype(np.int64), contributions)

    @property
    def contributions(self) -> int:
        """Of how many uploads' secrets this is the sum."""
        return self._contributions

    def to_array(self) -> NDArray[np.int64]:
        """A copy of the N coefficients. Secret: pad or protect it wherever it goes."""
        return self._coefficients.copy()

    def __add__(self, other: object) -> OneTimeSecret:
        if not isinstance(other, OneTimeSecret):
            return NotImplemented
        return OneTimeSecret(
            self._coefficients + other._coefficients, self._contributions + other._contributions
        )

    def __repr__(self) -> str:
        return f"OneTimeSecret(contributions={self._contributions})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a OneTimeSecret is not picklable; pad and send its array")
