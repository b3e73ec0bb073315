"""Blocks of N values to residues on the wire, and sums of residues back to values.

For block j with public polynomial a_j, message m_j and a one-time secret s, a client computes

    c_j = m_j + e_j - a_j s  mod q,    x_j = round(c_j p / q)  mod p,

and sends x_j. Sums of x_j over clients are sums of c_j up to rounding, so with the sum of the
secrets, round(sum x_j q / p) + a_j sum s is the sum of m_j and small errors: a key-additive
variant of symmetric RLWE encryption (SASH, arXiv 2111.12321; ACORN, ePrint 2022/1461).

Rounding (modulus switching) replaces a small q: c_j is uniform, so what is rounded away is a
uniform number of variance 1/12 of a unit in x, independent of the message (subtractive dither),
where encrypting modulo p itself would add RLWE's noise of variance 10.5 units. And it is a public
function of the ciphertext, so it cannot tell anything that the ciphertext does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tenseal.sealapi as sealapi
from numpy.typing import NDArray

from fedsens.crypto._encoding import Floats, decode, encode
from fedsens.crypto._parameters import CkksParameters
from fedsens.crypto._seal import Ring, centre, seal_context, seal_file
from fedsens.crypto._secret import OneTimeSecret, public_polynomial
from fedsens.crypto._wire import CHUNK, Batch, Words, to_wire
from fedsens.errors import ValueRangeError


def switch_modulus(words: Words, source: int, target: int) -> Words:
    """round(x target / source) modulo ``target``, exactly, for x below ``source``, odd, below 2^55.

    The product does not fit 64 bits, and float64 alone errs by up to 6 units where it is rounded
    up. Its guess is close enough that the remainder x target - guess source fits, so that integer
    arithmetic modulo 2^64 knows it exactly and mends the guess.
    """
    if source == target:
        return words
    guess: NDArray[np.int64] = np.rint(words * (target / source)).astype(np.int64)
    # Both products wrap around 2^64, and so does their difference, which is small: it is exact.
    rest = words.astype(np.int64) * np.int64(target) - guess * np.int64(source)
    guess += (2 * rest + source) // (2 * source)  # floor(rest / source + 1/2)
    guess[guess == target] = 0  # rounded up to the modulus
    return guess.view(np.uint64)


def encrypt_blocks(
    parameters: CkksParameters,
    context: bytes,
    secret: OneTimeSecret,
    values: NDArray[np.floating],
    scale: float = 1.0,
    first: int = 0,
) -> Iterator[bytes]:
    """Encrypt a vector that has been checked already.

    Args:
        parameters: the parameter set.
        context: what all who add up agree on.
        secret: used for this vector and never again.
        values: 1-D float array.
        scale: a factor for all values.
        first: the index of its first block, where it is the later part of a longer vector.

    Yields:
        The wire form of the next blocks.

    Raises:
        ValueRangeError: the values of a block conspire with the phases to a coefficient beyond
            half the modulus, which no honest block does.
    """
    step = CHUNK * parameters.degree
    with seal_file() as file:
        keystream = Keystream(Ring(file), secret)
        for low in range(0, len(values), step):
            message = encode(values[low : low + step], parameters, scale)  # m: (blocks, N)
            start = first + low // parameters.degree
            # Beyond q / 2 the message would come back as another one.
            if int(abs(message).max()) > parameters.modulus // 2:
                raise ValueRangeError(
                    f"expected flattened coefficients within the modulus, got more in blocks "
                    f"{start} to {start + len(message) - 1}; choose another phase seed or a larger "
                    "range"
                )
            public = _public(parameters, context, start, len(message))
            # c = m + (e - a s). NumPy's remainder of a negative number is positive: c in [0, q).
            words = (message + keystream.fresh(public).view(np.int64)) % parameters.modulus
            yield to_wire(
                switch_modulus(words.view(np.uint64), parameters.modulus, parameters.wire_modulus),
                parameters,
            )


def decrypt_blocks(batch: Batch, context: bytes, secret: OneTimeSecret) -> Iterator[Floats]:
    """Values of the next blocks, shape (blocks, N), of a sum under the sum of its secrets."""
    parameters = batch.parameters
    with seal_file() as file:
        keystream = Keystream(Ring(file), secret)
        for part, words in batch.chunks():
            # x q / p is the sum of the c_j but for the rounding; adding a s leaves m and noise.
            words = switch_modulus(words, parameters.wire_modulus, parameters.modulus)
            public = _public(parameters, context, part.start, len(words))
            yield decode(centre(words + keystream.exact(public)), parameters)


def _public(parameters: CkksParameters, context: bytes, start: int, count: int) -> Iterator[Words]:
    """The public polynomials of ``count`` blocks from ``start`` on."""
    return (public_polynomial(parameters, context, start + row) for row in range(count))


class Keystream:
    """What a secret s adds to blocks, e_j - a_j s, and what takes it away again, a_j s."""

    def __init__(self, ring: Ring, secret: OneTimeSecret) -> None:
        key = ring.secret_key(secret)
        self._ring = ring
        self._encryptor = sealapi.Encryptor(seal_context(), key)
        self._decryptor = sealapi.Decryptor(seal_context(), key)

    def fresh(self, public: Iterable[Words]) -> Words:
        """e_j - a_j s with a fresh error e_j each, as coefficients, shape (polynomials, N).

        SEAL encrypts zero with a second polynomial r of its own: c0 = e - r s. Decrypting
        (c0, r - a) gives c0 + (r - a) s, in which r is gone: e - a s. So errors, transforms and
        products with the secret stay SEAL's.
        """
        return self._decrypted(map(self._encrypted_zero, public))

    def exact(self, public: Iterable[Words]) -> Words:
        """a_j s as coefficients, shape (polynomials, N): the decryption of (0, a_j)."""
        return self._decrypted(map(self._ring.public, public))

    def _encrypted_zero(self, public: Words) -> Any:
        """(e - r s, r - a), transformed."""
        zero = sealapi.Ciphertext()
        self._encryptor.encrypt_zero_symmetric(zero)
        self._ring.evaluator.sub_inplace(zero, self._ring.public(public))
        return zero

    def _decrypted(self, ciphertexts: Iterable[Any]) -> Words:
        plaintexts = []
        for ciphertext in ciphertexts:
            plaintexts.append(sealapi.Plaintext())
            self._decryptor.decrypt(ciphertext, plaintexts[-1])
        # Coefficients, because rounding must be a small change of the polynomial: a small change
        # of its transform is a large one.
        return self._ring.coefficients(plaintexts)
