"""Key files: locked by a passphrase if their owner wants it, and their public half.

A locked key is the key's JSON under ChaCha20-Poly1305, with a key that scrypt (RFC 7914) derives
from the passphrase. Fingerprint and parameters stay readable and are authenticated.
"""

from __future__ import annotations

import base64
import json
import os
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, Literal, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedsens.crypto import CkksParameters, SecretKey
from fedsens.crypto.keys import read_private, write_private
from fedsens.errors import KeyFileError
from fedsens.protocol.fields import wrong_fields

LOCKED_TYPE: Final = "fedsens locked key"
PUBLIC_TYPE: Final = "fedsens public parameters"
MOST_MEMORY = 2**28  # bytes that a file may make scrypt use
NONCE = bytes(12)  # each lock has a salt, and so a key, of its own

Ask = Callable[[], str]


class ScryptCost(BaseModel):
    """Parameters of scrypt; it uses 128 n r bytes (128 MiB here).

    Attributes:
        n: CPU and memory cost, a power of two.
        r: block size.
        p: parallelisation.
        salt: 16 random bytes, hexadecimal.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int = Field(default=2**17, ge=2, le=2**20)
    r: int = Field(default=8, ge=1, le=32)
    p: int = Field(default=1, ge=1, le=4)
    salt: str = Field(pattern="^[0-9a-f]{32}$")

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if 128 * self.n * self.r > MOST_MEMORY or self.n & (self.n - 1):
            raise ValueError(f"scrypt must use at most {MOST_MEMORY} bytes, and n a power of two")
        return self

    def derive(self, passphrase: str) -> bytes:
        """The 32-byte key that a passphrase stands for."""
        text = unicodedata.normalize("NFC", passphrase).encode()
        scrypt = Scrypt(salt=bytes.fromhex(self.salt), length=32, n=self.n, r=self.r, p=self.p)
        return scrypt.derive(text)


class PublicParameters(BaseModel):
    """What may be known of a key: for the server, which can then expect exactly this key.

    Attributes:
        fingerprint: identifies the key.
        parameters: CKKS parameter sets that it covers, the one for the model first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["fedsens public parameters"] = PUBLIC_TYPE
    version: Literal[1] = 1
    fingerprint: str = Field(pattern="^[0-9a-f]{32}$")
    parameters: tuple[CkksParameters, ...] = Field(min_length=1)

    @classmethod
    def of(cls, key: SecretKey) -> Self:
        """The public half of a key."""
        return cls(fingerprint=key.fingerprint, parameters=key.parameter_sets)

    def save(self, path: Path) -> None:
        """Write a new file.

        Args:
            path: the file.

        Raises:
            KeyFileError: it exists already or cannot be written.
        """
        try:
            with path.open("x") as file:
                file.write(self.model_dump_json(indent=2) + "\n")
        except OSError as error:
            raise KeyFileError(
                f"expected to write a new file {path}, got: {error.strerror}; choose another name"
            ) from None

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file of :meth:`save`.

        Args:
            path: the file.

        Returns:
            The public parameters.

        Raises:
            KeyFileError: it is no such file.
        """
        try:
            return cls.model_validate_json(path.read_text())
        except (OSError, ValueError) as error:
            raise KeyFileError(
                f"expected {PUBLIC_TYPE} in {path}, got {type(error).__name__}; fedsens keygen "
                "writes them beside a key"
            ) from None


class LockedKey(BaseModel):
    """A secret key under a passphrase.

    Attributes:
        public: fingerprint and parameters of the key.
        scrypt: how the passphrase becomes a key.
        sealed: the AEAD's ciphertext of the key, base64.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["fedsens locked key"] = LOCKED_TYPE
    version: Literal[1] = 1
    public: PublicParameters
    scrypt: ScryptCost
    sealed: str

    @classmethod
    def lock(cls, key: SecretKey, passphrase: str) -> Self:
        """Lock a key.

        Args:
            key: the key.
            passphrase: at least one character.

        Returns:
            The locked key.

        Raises:
            KeyFileError: the passphrase is empty.
        """
        if not passphrase:
            raise KeyFileError("expected a passphrase, got an empty one; choose a long one")
        open_lock = cls(
            public=PublicParameters.of(key),
            scrypt=ScryptCost(salt=os.urandom(16).hex()),
            sealed="",
        )
        cipher = ChaCha20Poly1305(open_lock.scrypt.derive(passphrase))
        sealed = cipher.encrypt(NONCE, key.to_bytes(), open_lock._context())
        return open_lock.model_copy(update={"sealed": base64.b64encode(sealed).decode()})

    def unlock(self, passphrase: str) -> SecretKey:
        """Open the lock.

        Args:
            passphrase: the passphrase.

        Returns:
            The key.

        Raises:
            KeyFileError: the passphrase is wrong, or the file was altered: nobody can tell which.
        """
        try:
            cipher = ChaCha20Poly1305(self.scrypt.derive(passphrase))
            data = cipher.decrypt(NONCE, base64.b64decode(self.sealed), self._context())
        except (InvalidTag, ValueError):
            raise KeyFileError(
                "expected the passphrase that locked this key, got another, or a damaged file"
            ) from None
        return SecretKey.from_bytes(data)

    def _context(self) -> bytes:
        return self.model_dump_json(exclude={"sealed"}).encode()


def save_key(key: SecretKey, path: Path, passphrase: str | None = None) -> None:
    """Write a key to a new file of mode 0600.

    Args:
        key: the key.
        path: where to write; the folder must exist.
        passphrase: locks the file; None leaves it open to whoever can read it.
    """
    locked = None if passphrase is None else LockedKey.lock(key, passphrase)
    data = key.to_bytes() if locked is None else (locked.model_dump_json() + "\n").encode()
    write_private(path, data)


def load_key(path: Path, ask: Ask | None = None) -> SecretKey:
    """Read a key file, locked or not.

    Args:
        path: the file.
        ask: gives the passphrase; called for a locked file only.

    Returns:
        The key.

    Raises:
        KeyFileError: the file is no key, or it is locked and there is no passphrase.
    """
    data = read_private(path)
    locked = locked_key_in(data)
    if locked is None:
        return SecretKey.from_bytes(data)
    if ask is None:
        raise KeyFileError(
            f"expected the passphrase of {path}, got none; set fedsens-passphrase-file or "
            "FEDSENS_PASSPHRASE_FILE"
        )
    return locked.unlock(ask())


def locked_key_in(data: bytes) -> LockedKey | None:
    """Read a locked key.

    Args:
        data: content of a file.

    Returns:
        The locked key, None if the bytes are something else.

    Raises:
        KeyFileError: it is a locked key of another version, damaged, or too costly to open.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.get("type") != LOCKED_TYPE:
        return None
    try:
        return LockedKey.model_validate(content)
    except ValidationError as error:
        raise KeyFileError(
            f"expected a {LOCKED_TYPE} of version 1 in the allowed bounds, got one with wrong "
            f"{wrong_fields(error)}; restore a copy"
        ) from None


def read_passphrase(path: Path) -> str:
    """Read a passphrase from a file of mode 0600; one line break at the end is not part of it.

    Args:
        path: the file.

    Returns:
        The passphrase.

    Raises:
        KeyFileError: it cannot be read, lets others in, or is not text.
    """
    try:
        return read_private(path).decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise KeyFileError(f"expected a passphrase as UTF-8 text in {path}, got bytes") from None


def load_publics(paths: Iterable[Path]) -> list[PublicParameters]:
    """Read the public parameters of the keys of a run in the order of their use."""
    return [PublicParameters.load(path) for path in paths]
