"""Pseudo-random streams: ChaCha20 (RFC 8439) under a key that a label has been bound into."""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray

Words = NDArray[np.uint64]


def stream(seed: bytes) -> CipherContext:
    """A stream for a seed of 32 bytes, which must be used for one purpose only."""
    return Cipher(ChaCha20(seed, bytes(16)), mode=None).encryptor()


def uint16s(seed: bytes, count: int) -> NDArray[np.uint16]:
    """Uniform numbers below 2^16."""
    return np.frombuffer(stream(seed).update(bytes(2 * count)), "<u2")


def residues_below(source: CipherContext, count: int, modulus: int) -> Words:
    """Uniform numbers below a modulus.

    Words of as many bits as the modulus has are drawn, and those beyond it dropped, so that no
    residue is more likely than another. Wire moduli lie just below powers of two: hardly any is.
    """
    found = np.empty(0, np.uint64)
    mask = np.uint64(2 ** (modulus - 1).bit_length() - 1)
    while len(found) < count:
        missing = count - len(found)
        words = np.frombuffer(source.update(bytes(8 * missing)), "<u8") & mask
        found = np.concatenate((found, words[words < np.uint64(modulus)]))
    return found
