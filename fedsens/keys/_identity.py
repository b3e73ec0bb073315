"""Identities of clients, rosters of those that may share a key, and how one hands it to another.

The key travels through the server in a sealed envelope: X25519, HKDF-SHA256 and ChaCha20-Poly1305
from the ``cryptography`` package. The shared secret joins an ephemeral with the sender's static key
(as the Noise pattern X does), so only the recipient can open an envelope and only the named sender
can have made it. Both public keys, the run and the place of the key among the run's keys are bound
into it, so that an old key cannot be delivered as a new one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedsens._files import read_guarded, read_private, write_private
from fedsens.errors import EnvelopeError, KeyFileError, RosterError

PUBLIC_BYTES = 32
LABEL = b"fedsens envelope 3"
NONCE = bytes(12)  # each envelope has a key of its own, used once


def load_identity(path: Path) -> X25519PrivateKey:
    """The X25519 key pair in a file of mode 0600, which is made where there is none.

    Raises:
        KeyFileError: the file cannot be read or written, is damaged, or others can get at it.
    """
    if not path.exists():
        try:
            write_private(path, X25519PrivateKey.generate().private_bytes_raw())
        except KeyFileError:
            if not path.exists():  # else another message has just made it
                raise
    try:
        return X25519PrivateKey.from_private_bytes(read_private(path))
    except ValueError:
        raise KeyFileError(
            f"expected an identity of 32 bytes in {path}; delete it to make a new one"
        ) from None


def read_roster(path: Path) -> list[bytes]:
    """The raw public keys of a roster, a JSON list of X25519 public keys in hexadecimal.

    Raises:
        RosterError: it is no such list, or others can write to it.
    """
    try:
        content = read_guarded(path)
    except KeyFileError as error:
        raise RosterError(
            "expected a roster that only this user or root can write, got another file or none",
            str(error),
        ) from None
    try:
        items = json.loads(content)
    except (ValueError, RecursionError):
        items = None
    if not isinstance(items, list) or not all(map(is_public_key, items)):
        raise RosterError(
            f"expected a JSON list of hexadecimal public keys in {path.name}; fix the file"
        )
    return [bytes.fromhex(item) for item in items]


def is_public_key(item: object) -> bool:
    """Whether something is an X25519 public key in hexadecimal, by its form."""
    return isinstance(item, str) and re.fullmatch("[0-9a-fA-F]{64}", item) is not None


def write_roster(path: Path, public_keys: Iterable[str]) -> list[bytes]:
    """Write a new roster of X25519 public keys in hexadecimal; the raw ones, each once.

    Raises:
        RosterError: one is no public key, or the file cannot be written.
    """
    chosen = sorted({each.strip().lower() for each in public_keys})
    wrong = [each for each in chosen if not is_public_key(each)]
    if wrong:
        raise RosterError(
            f"expected public keys of 64 hexadecimal digits, got {', '.join(wrong)}; use what "
            "fedsens identity prints"
        )
    try:
        write_private(path, (json.dumps(chosen, indent=2) + "\n").encode())
        path.chmod(0o644)  # no secret, but nobody else may change it, whatever the umask
    except KeyFileError as error:
        raise RosterError(f"this roster cannot be written: {error}") from None
    return [bytes.fromhex(each) for each in chosen]


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


def _context(run: str, key_index: int, ephemeral: bytes, sender: bytes, recipient: bytes) -> bytes:
    bound = (LABEL, run.encode(), str(key_index).encode(), ephemeral + sender + recipient)
    return b"|".join(bound)


def _derive(shared: bytes, context: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=context).derive(shared)
