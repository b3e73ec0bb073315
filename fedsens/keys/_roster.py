"""Identities of clients, and rosters of those that may share a key."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedsens.errors import KeyFileError, RosterError
from fedsens.files import read_guarded, read_private, write_private


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
        raise RosterError(f"this roster cannot be trusted: {error}") from None
    try:
        items = json.loads(content)
    except (ValueError, RecursionError):
        items = None
    if not isinstance(items, list) or not all(map(is_public_key, items)):
        raise RosterError(
            f"expected a JSON list of hexadecimal public keys in {path}; fix the file"
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
    wrong = [each for each in chosen if not re.fullmatch("[0-9a-f]{64}", each)]
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
