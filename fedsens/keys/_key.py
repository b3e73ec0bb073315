"""FederationKey: K, the secret that all clients share and the server never sees.

It pads the sum of the one-time secrets and keys the tags. No upload is encrypted under it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
from pathlib import Path
from typing import Final, NoReturn, Self

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedsens._files import read_private, write_private
from fedsens.errors import KeyFileError
from fedsens.keys._file import KEY_VERSION, Ask, LockedKey, check_version, locked_key_in

#: The type in the first line of a file with a federation key.
KEY_TYPE: Final = "fedsens federation key"
KEY_BYTES = 32
DOMAIN = b"fedsens 3"


class FederationKey:
    """32 random bytes. Instances show nothing secret and refuse to be pickled."""

    def __init__(self, secret: bytes) -> None:
        """Wrap an existing secret; use :meth:`generate` or :meth:`load` instead.

        Args:
            secret: 32 bytes that nobody can guess.

        Raises:
            KeyFileError: it has another length.
        """
        if len(secret) != KEY_BYTES:
            raise KeyFileError(f"expected a key of {KEY_BYTES} bytes, got {len(secret)}")
        self._secret = bytes(secret)

    @classmethod
    def generate(cls) -> Self:
        """A fresh key from the system's randomness."""
        return cls(os.urandom(KEY_BYTES))

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits that identify the key without revealing it."""
        return hashlib.sha256(DOMAIN + b" key fingerprint" + self._secret).hexdigest()[:32]

    def derive(self, label: bytes, length: int = 32) -> bytes:
        """A further secret that every holder of this key can compute, and nobody else.

        HKDF with SHA-256 (RFC 5869).

        Args:
            label: what it is for; other labels give independent secrets.
            length: bytes, at most 8160.

        Returns:
            The bytes. A longer output begins with a shorter one's bytes: give what differs in
            length another label, too.
        """
        return HKDF(algorithm=SHA256(), length=length, salt=DOMAIN, info=label).derive(self._secret)

    def to_bytes(self) -> bytes:
        """The key as JSON bytes. Secret: seal or protect it wherever it goes."""
        return json.dumps({
            "type": KEY_TYPE,
            "version": KEY_VERSION,
            "fingerprint": self.fingerprint,
            "key": base64.b64encode(self._secret).decode(),
        }).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Rebuild a key from :meth:`to_bytes`.

        Args:
            data: the JSON bytes.

        Returns:
            The key.

        Raises:
            KeyFileError: the bytes are not a key of this version, or are damaged.
        """
        # Causes are dropped on purpose: their texts could quote the secret.
        try:
            content = json.loads(data)
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            raise KeyFileError("expected an intact key, got damaged bytes; restore a copy")
        check_version(content)
        if (content.get("type"), content.get("version")) != (KEY_TYPE, KEY_VERSION):
            raise KeyFileError(
                f"expected a {KEY_TYPE!r} of version {KEY_VERSION}, got another type or version; "
                "use a key made by this version of fedsens"
            )
        try:
            key = cls(base64.b64decode(content["key"], validate=True))
            intact = key.fingerprint == content["fingerprint"]
        except (ValueError, KeyError, TypeError, KeyFileError):
            intact = False
        if not intact:
            raise KeyFileError(
                "expected an intact key, got damaged bytes; restore a copy"
            ) from None
        return key

    def save(self, path: str | os.PathLike[str], passphrase: str | None = None) -> None:
        """Write the key to a new file that only its owner can read (mode 0600).

        A file that exists already is never overwritten: that is a KeyFileError.

        Args:
            path: where to write; the folder must exist.
            passphrase: locks the file; None leaves it open to whoever can read it.
        """
        data = self.to_bytes()
        if passphrase is not None:
            data = LockedKey.lock(data, self.fingerprint, passphrase).model_dump_json().encode()
        write_private(Path(path), data + b"\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str], ask: Ask | None = None) -> Self:
        """Read a key file, locked or not.

        Args:
            path: a file written by :meth:`save`.
            ask: gives the passphrase; called for a locked file only.

        Returns:
            The key.

        Raises:
            KeyFileError: the file is no key, others can read it, or it is locked and there is no
                passphrase.
        """
        data = read_private(Path(path))
        locked = locked_key_in(data)
        if locked is None:
            return cls.from_bytes(data)
        if ask is None:
            raise KeyFileError(
                f"expected the passphrase of {path}, got none; set fedsens-passphrase-file or "
                "FEDSENS_PASSPHRASE_FILE"
            )
        return cls.from_bytes(locked.unlock(ask()))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FederationKey):
            return NotImplemented
        return hmac.compare_digest(self._secret, other._secret)

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"FederationKey(fingerprint={self.fingerprint!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a FederationKey is not picklable; use save() or a sealed envelope")
