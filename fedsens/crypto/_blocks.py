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

from collections.abc import Iterator

import numpy as np
import tenseal.sealapi as sealapi
from numpy.typing import NDArray

from fedsens.crypto._packing import Floats, Slots, pack, unpack
from fedsens.crypto._parameters import CkksParameters
from fedsens.crypto._seal import Ring, public_seed, seal_context, seal_file
from fedsens.crypto._secret import OneTimeSecret
from fedsens.crypto._wire import CHUNK, Batch, Words, to_wire
from fedsens.errors import ValueRangeError


def switch_modulus(words: Words, source: int, target: int) -> Words:
    """round(x target / source) modulo ``target``, exactly, for odd moduli below 2^55.

    The product does not fit 64 bits, and float64 alone errs by up to 6 units where it is rounded
    up. Its guess is close enough that the remainder x target - guess source fits, so that integer
    arithmetic modulo 2^64 knows it exactly and mends the guess.

    Args:
        words: numbers below ``source``, any shape.
        source: their modulus.
        target: the new one.

    Returns:
        Numbers below ``target``.
    """
    if source == target:
        return words
    guess: NDArray[np.int64] = np.rint(words * (target / source)).astype(np.int64)
    rest = words.astype(np.int64) * np.int64(target) - guess * np.int64(source)
    guess += (2 * rest + source) // (2 * source)
    guess[guess == target] = 0
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
    """
    step = CHUNK * parameters.degree
    with seal_file() as file:
        encryptor = _Encryptor(Ring(file), secret)
        for low in range(0, len(values), step):
            slots = pack(values[low : low + step], parameters, scale)
            words = np.empty((len(slots), parameters.degree), np.uint64)
            for row, block in enumerate(slots):
                index = first + low // parameters.degree + row
                words[row] = encryptor.encrypt(
                    block, index, public_seed(parameters, context, index)
                )
            words = switch_modulus(words, parameters.modulus, parameters.wire_modulus)
            yield to_wire(words, parameters)


class _Encryptor:
    """SEAL's objects for encrypting under one secret."""

    def __init__(self, ring: Ring, secret: OneTimeSecret) -> None:
        key = ring.secret_key(secret)
        self._ring = ring
        self._encoder = sealapi.CKKSEncoder(seal_context())
        self._encryptor = sealapi.Encryptor(seal_context(), key)
        self._decryptor = sealapi.Decryptor(seal_context(), key)
        self._plaintext, self._ciphertext = sealapi.Plaintext(), sealapi.Ciphertext()
        self._slots: list[complex] = []

    def encrypt(self, slots: Slots, index: int, seed: bytes) -> Words:
        """The coefficients of m + e - a s for one block's slots."""
        # The name keeps the last list until the next one exists; otherwise Python gives its
        # memory back to the system and faults it in again, every block.
        self._slots = slots.tolist()
        try:
            self._encoder.encode(self._slots, 1.0, self._plaintext)
        except ValueError:
            raise ValueRangeError(
                f"expected flattened coefficients within the modulus, got block {index} beyond; "
                "choose another phase seed or a larger range"
            ) from None
        # SEAL encrypts with a second polynomial r of its own: c0 = m + e - r s. Decrypting
        # (c0, r - a) then gives c0 + (r - a) s, in which r is gone: m + e - a s. So sampling,
        # transforms and products with the secret stay SEAL's.
        self._encryptor.encrypt_symmetric(self._plaintext, self._ciphertext)
        self._ring.evaluator.sub_inplace(self._ciphertext, self._ring.public(seed))
        self._decryptor.decrypt(self._ciphertext, self._plaintext)
        # Coefficients, because rounding must be a small change of the polynomial: a small change
        # of its transform is a large one.
        return self._ring.coefficients(self._plaintext)


def decrypt_blocks(batch: Batch, context: bytes, secret: OneTimeSecret) -> Iterator[Floats]:
    """Open a sum with the sum of its secrets.

    Args:
        batch: the sum.
        context: what all who added up agreed on.
        secret: the sum of the secrets of its summands.

    Yields:
        The values of the next blocks, shape (blocks, N), the padding included.
    """
    parameters = batch.parameters
    with seal_file() as file:
        decryptor = _Decryptor(Ring(file), secret)
        for part, words in batch.chunks():
            words = switch_modulus(words, parameters.wire_modulus, parameters.modulus)
            slots = np.empty((len(words), parameters.degree // 2), np.complex128)
            for row, block in enumerate(words):
                seed = public_seed(parameters, context, part.start + row)
                slots[row] = decryptor.decrypt(block, seed)
            yield unpack(slots, parameters).reshape(-1, parameters.degree)


class _Decryptor:
    """SEAL's objects for decrypting under one sum of secrets."""

    def __init__(self, ring: Ring, secret: OneTimeSecret) -> None:
        self._ring = ring
        self._encoder = sealapi.CKKSEncoder(seal_context())
        self._decryptor = sealapi.Decryptor(seal_context(), ring.secret_key(secret))
        self._plaintext = sealapi.Plaintext()
        self._slots: list[complex] = []

    def decrypt(self, coefficients: Words, seed: bytes) -> Slots:
        """The slots of c + a s."""
        # (c, 1) + (0, a) - (0, 1): in this order no second polynomial is ever 0.
        pair = self._ring.transformed(coefficients)
        self._ring.evaluator.add_inplace(pair, self._ring.public(seed))
        self._ring.evaluator.sub_inplace(pair, self._ring.one)
        self._decryptor.decrypt(pair, self._plaintext)
        self._slots = self._encoder.decode_complex(self._plaintext)  # kept as in _Encryptor
        return np.fromiter(self._slots, np.complex128, len(self._slots))
