"""Identities of clients, and rosters of those that may share a key."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedsens.errors import KeyFileError, RosterError
from fedsens.files import read_guarded, read_private, write_private


def load_identity(path: Path) -> X25519PrivateKey:
    """Read an X25519 key pair, which is created where there is none.

    Args:
        path: its file, mode 0600.

    Returns:
        The key pair.

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
    """Read a roster.

    Args:
        path: a JSON list of X25519 public keys in hexadecimal.

    Returns:
        The raw public keys.

    Raises:
        RosterError: it is no such list, or others can write to it.
    """
    try:
        content = read_guarded(path)
    except KeyFileError as error:
        raise RosterError(f"this roster cannot be trusted: {error}") from None
    try:
        return parse_public_keys(content)
    except ValueError:
        raise RosterError(
            f"expected a JSON list of hexadecimal public keys in {path}; fix the file"
        ) from None


def parse_public_keys(text: str | bytes) -> list[bytes]:
    """Read a JSON list of X25519 public keys in hexadecimal.

    Args:
        text: the JSON text.

    Returns:
        The raw public keys.

    Raises:
        ValueError: it is no such list.
    """
    try:
        items = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(items, list) or not all(map(_is_public_key, items)):
        raise ValueError("expected a list of public keys")
    return [bytes.fromhex(item) for item in items]


def _is_public_key(item: object) -> bool:
    return isinstance(item, str) and re.fullmatch("[0-9a-fA-F]{64}", item) is not None


def write_roster(path: Path, public_keys: Iterable[str]) -> list[bytes]:
    """Write a roster.

    Args:
        path: the new file.
        public_keys: X25519 public keys in hexadecimal.

    Returns:
        The raw public keys, each once.

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
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        with os.fdopen(descriptor, "w") as file:
            os.fchmod(descriptor, 0o644)  # whatever the umask: no secret, but not to be changed
            file.write(json.dumps(chosen, indent=2) + "\n")
    except OSError as error:
        raise RosterError(
            f"expected to write a new roster {path}, got: {error.strerror}; choose another name"
        ) from None
    return [bytes.fromhex(each) for each in chosen]
