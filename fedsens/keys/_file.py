"""Key files under a passphrase.

A locked file is a key's own file under ChaCha20-Poly1305, with a key that scrypt (RFC 7914) derives
from the passphrase. The fingerprint stays readable and is authenticated.
"""

from __future__ import annotations

import base64
import json
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedsens._files import read_private
from fedsens.errors import KeyFileError

#: The type in the first line of a key file that a passphrase locks.
LOCKED_TYPE: Final = "fedsens locked key"
KEY_VERSION: Final = 3  # of open and locked key files
MOST_MEMORY = 2**28  # bytes that a file may make scrypt use
NONCE = bytes(12)  # each lock has a salt, and so a key, of its own
OLDER = (("fedsens secret key", 1), (LOCKED_TYPE, 1))  # types and versions of fedsens 0.1

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
        if self.n >= 2 ** (16 * self.r):  # RFC 7914, section 2
            raise ValueError(f"scrypt's n must be below 2^{16 * self.r} with r = {self.r}")
        return self

    def derive(self, passphrase: str) -> bytes:
        """The 32-byte key that a passphrase stands for."""
        text = unicodedata.normalize("NFC", passphrase).encode()
        scrypt = Scrypt(salt=bytes.fromhex(self.salt), length=32, n=self.n, r=self.r, p=self.p)
        return scrypt.derive(text)


class LockedKey(BaseModel):
    """A key under a passphrase.

    Attributes:
        fingerprint: of the key.
        scrypt: how the passphrase becomes a key.
        sealed: the AEAD's ciphertext of the key, base64.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["fedsens locked key"] = LOCKED_TYPE
    version: Literal[3] = KEY_VERSION
    fingerprint: str = Field(pattern="^[0-9a-f]{32}$")
    scrypt: ScryptCost
    sealed: str

    @classmethod
    def lock(cls, data: bytes, fingerprint: str, passphrase: str) -> Self:
        """Lock a key's bytes by a passphrase that is not empty."""
        if not passphrase:
            raise KeyFileError("expected a passphrase, got an empty one; choose a long one")
        open_lock = cls(
            fingerprint=fingerprint, scrypt=ScryptCost(salt=os.urandom(16).hex()), sealed=""
        )
        cipher = ChaCha20Poly1305(open_lock.scrypt.derive(passphrase))
        sealed = cipher.encrypt(NONCE, data, open_lock._context())
        return open_lock.model_copy(update={"sealed": base64.b64encode(sealed).decode()})

    def unlock(self, passphrase: str) -> bytes:
        """The key's bytes.

        Raises:
            KeyFileError: the passphrase is wrong, or the file was altered: nobody can tell which.
                Or there is too little memory for scrypt.
        """
        try:
            cipher = ChaCha20Poly1305(self.scrypt.derive(passphrase))
        except MemoryError:
            needed = 128 * self.scrypt.n * self.scrypt.r // 2**20
            raise KeyFileError(
                f"expected {needed} MiB of free memory to open a locked key, got less; free some"
            ) from None
        try:
            return cipher.decrypt(NONCE, base64.b64decode(self.sealed), self._context())
        except (InvalidTag, ValueError):
            raise KeyFileError(
                "expected the passphrase that locked this key, got another, or a damaged file"
            ) from None

    def _context(self) -> bytes:
        return self.model_dump_json(exclude={"sealed"}).encode()


def locked_key_in(data: bytes) -> LockedKey | None:
    """The locked key in a file's bytes, None if they are something else.

    Raises:
        KeyFileError: it is a locked key of another version, damaged, or too costly to open.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.get("type") != LOCKED_TYPE:
        return None
    check_version(content)
    try:
        return LockedKey.model_validate(content)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False, include_input=False)
        names = {str(item["loc"][0]) for item in details if item["loc"]}
        known = ", ".join(sorted(names & set(LockedKey.model_fields)))
        raise KeyFileError(
            f"expected a {LOCKED_TYPE} of version {KEY_VERSION} in the allowed bounds, got one "
            f"with wrong {known or 'content'}; restore a copy"
        ) from None


def check_version(content: dict[object, object]) -> None:
    """Refuse key files that an older fedsens made, by name."""
    found = content.get("type"), content.get("version")
    if found in OLDER:
        raise KeyFileError(
            f"expected a key of version {KEY_VERSION}, got one made by an older fedsens; make a "
            "new key with fedsens keygen"
        )


def read_passphrase(path: Path) -> str:
    """The passphrase in a file of mode 0600; one line break at the end is not part of it.

    Raises:
        KeyFileError: it cannot be read, lets others in, or is not text.
    """
    try:
        return read_private(path).decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise KeyFileError(f"expected a passphrase as UTF-8 text in {path}, got bytes") from None
