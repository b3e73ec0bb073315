"""Key answers: one-time secrets that can be added, and opened only as a sum.

Contributor i answers the list S with

    y_i = s_i + sum over j in S, j != i, of sign(i, j) PRG(k_ij, digest) + PRG(K, digest, i)

modulo 2^16, digest being that of the list within its context. The pairwise pads cancel in the sum
over S and in no other one (Bonawitz et al. 2017, "Practical Secure Aggregation for
Privacy-Preserving Machine Learning", section 4; here without recovery of lost clients). Two
different lists have different digests, so answers to both do not cancel either. The pad under K
keeps the sum from the server; it is left away where the clients' owners let the server open it.
k_ij joins Diffie-Hellman of the run's identities E, which are deleted with the run, with that of
the lasting identities P, which a pinned roster vouches for.

PRG is ChaCha20 (RFC 8439) under a key that a label has been bound into.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from fedsens.errors import ProtocolError
from fedsens.keys._key import FederationKey
from fedsens.protocol import Party

Words = NDArray[np.uint64]

COEFFICIENTS = 4096


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


def key_answer(
    secret: NDArray[np.int64],
    identities: tuple[X25519PrivateKey, X25519PrivateKey],
    others: Iterable[Party],
    key: FederationKey | None,
    digest: bytes,
) -> bytes:
    """A contributor's padded secret.

    Args:
        secret: s_i, N small integers.
        identities: the contributor's own P and E.
        others: the other contributors.
        key: K; None where the server may open the sum, and it alone is then unpadded.
        digest: of the list within its context.

    Returns:
        2 N bytes: N numbers modulo 2^16, little-endian. Another contributor's key that is no usable
        X25519 public key is a ProtocolError.
    """
    own = identities[0].public_key().public_bytes_raw()
    answer = secret.astype(np.uint16)  # two's complement, so this is modulo 2^16
    if key is not None:
        answer += _key_pad(key, digest, own)
    for other in others:
        pad = uint16s(_pair_seed(identities, other, digest), COEFFICIENTS)
        # Of a pair the one with the lesser name adds what the other subtracts.
        if own < bytes.fromhex(other.name):
            answer += pad
        else:
            answer -= pad
    return answer.astype("<u2").tobytes()


def take_off_pads(
    key_sum: bytes, key: FederationKey, digest: bytes, padded_by: Iterable[bytes]
) -> NDArray[np.int64]:
    """The sum of the secrets in a sum of key answers, N integers in [-2^15, 2^15)."""
    total = np.frombuffer(key_sum, "<u2").copy()
    for name in padded_by:
        total -= _key_pad(key, digest, name)
    # Two's complement: a sum of secrets is small, so modulo 2^16 it is known with its sign.
    return total.view(np.int16).astype(np.int64)


def put_pads_on(
    secret: NDArray[np.int64], key: FederationKey, digest: bytes, padded_by: Iterable[bytes]
) -> bytes:
    """Undo :func:`take_off_pads`, under another key for instance."""
    total = secret.astype(np.uint16)
    for name in padded_by:
        total += _key_pad(key, digest, name)
    return total.astype("<u2").tobytes()


def _key_pad(key: FederationKey, digest: bytes, name: bytes) -> NDArray[np.uint16]:
    """PRG(K, digest, name)."""
    return uint16s(key.derive(b"key pad" + digest + name), COEFFICIENTS)


def _pair_seed(
    identities: tuple[X25519PrivateKey, X25519PrivateKey], other: Party, digest: bytes
) -> bytes:
    """The seed of the pad that two contributors share for one list, and nobody else knows."""
    lasting, ephemeral = identities  # P with P of the other, E with E
    try:
        shared = ephemeral.exchange(
            X25519PublicKey.from_public_bytes(bytes.fromhex(other.run_key))
        ) + lasting.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(other.name)))
    except ValueError:  # a point of low order, with which anybody could know the result
        raise ProtocolError(
            f"expected usable public keys of the contributor {other.name[:16]}, got others; it or "
            "the server deviates from the protocol"
        ) from None
    return HKDF(SHA256(), 32, None, b"fedsens pair pad 3" + digest).derive(shared)
