"""Sealed envelopes: how one client hands the federation's key to another through the server.

X25519, HKDF-SHA256 and ChaCha20-Poly1305 from the ``cryptography`` package. The shared secret joins
an ephemeral with the sender's static key (as the Noise pattern X does), so only the recipient can
open an envelope and only the named sender can have made it. Both public keys, the run and the
place of the key among the run's keys are bound into it, so that an old key cannot be delivered as
a new one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedsens.errors import EnvelopeError

PUBLIC_BYTES = 32
LABEL = b"fedsens envelope 3"
NONCE = bytes(12)  # each envelope has a key of its own, used once


def seal(
    secret: bytes, sender: X25519PrivateKey, recipient: bytes, run: str, key_index: int
) -> bytes:
    """Seal a secret to one recipient.

    Args:
        secret: what to hand over.
        sender: the sender's identity.
        recipient: the recipient's raw X25519 public key (32 bytes).
        run: identifies the federation run; the envelope opens in this run only.
        key_index: how often the key of the run had been rotated when this one came into use.

    Returns:
        Ephemeral public key (32 bytes), then the AEAD's ciphertext.

    Raises:
        EnvelopeError: the recipient's public key is not a usable X25519 key.
    """
    ephemeral = X25519PrivateKey.generate()
    try:
        public = X25519PublicKey.from_public_bytes(recipient)
        shared = ephemeral.exchange(public) + sender.exchange(public)
    except ValueError:
        raise EnvelopeError(
            f"expected an X25519 public key of {PUBLIC_BYTES} bytes to seal to, got none"
        ) from None
    point = ephemeral.public_key().public_bytes_raw()
    context = _context(run, key_index, point, sender.public_key().public_bytes_raw(), recipient)
    return point + ChaCha20Poly1305(_derive(shared, context)).encrypt(NONCE, secret, context)


def unseal(
    envelope: bytes, recipient: X25519PrivateKey, sender: bytes, run: str, key_index: int
) -> bytes:
    """Open an envelope.

    Args:
        envelope: what :func:`seal` returned.
        recipient: the recipient's identity.
        sender: the sender's raw public key.
        run: the run that the envelope must be for.
        key_index: the place among the run's keys that the envelope must be for.

    Returns:
        The secret.

    Raises:
        EnvelopeError: the envelope is not from this sender to this recipient in this run, is for
            another key of the run, or was altered.
    """
    point, body = envelope[:PUBLIC_BYTES], envelope[PUBLIC_BYTES:]
    try:
        shared = recipient.exchange(X25519PublicKey.from_public_bytes(point))
        shared += recipient.exchange(X25519PublicKey.from_public_bytes(sender))
        context = _context(run, key_index, point, sender, recipient.public_key().public_bytes_raw())
        return ChaCha20Poly1305(_derive(shared, context)).decrypt(NONCE, body, context)
    except (ValueError, InvalidTag):
        raise EnvelopeError(
            "expected a sealed key from the named sender for this client, this run and this place "
            "among its keys, got an envelope that does not open; run key agreement again"
        ) from None


def roster_fingerprint(public_keys: Iterable[bytes]) -> str:
    """16 hexadecimal digits that identify who takes part in a key agreement.

    People compare it between clients, beside the key's fingerprint: if they are equal, the server
    relayed the same public keys to everybody.

    Args:
        public_keys: raw public keys of all that hold or get the key, in any order.

    Returns:
        The fingerprint.
    """
    return hashlib.sha256(b"".join(sorted(public_keys))).hexdigest()[:16]


def _context(run: str, key_index: int, ephemeral: bytes, sender: bytes, recipient: bytes) -> bytes:
    bound = (LABEL, run.encode(), str(key_index).encode(), ephemeral + sender + recipient)
    return b"|".join(bound)


def _derive(shared: bytes, context: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=context).derive(shared)
