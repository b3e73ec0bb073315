"""SecretKey: the CKKS secret that all clients share and the server never sees."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import stat
from pathlib import Path
from typing import Any, NoReturn, Self

import tenseal.sealapi as sealapi

from fedsens.crypto.params import MAP_PARAMETERS, CkksParameters
from fedsens.crypto.seal import seal_context, seal_file
from fedsens.crypto.secret import secret_stream
from fedsens.errors import KeyFileError, KeyMismatchError

FILE_TYPE = "fedsens secret key"
FILE_VERSION = 1


class SecretKey:
    """A CKKS secret key for a parameter set, and possibly for further ones.

    Weights and sensitivity maps use different parameter sets, each with an independent secret;
    one key file holds them all. Instances show nothing secret and refuse to be pickled.
    """

    def __init__(self, parameters: CkksParameters, secrets: dict[CkksParameters, bytes]) -> None:
        """Wrap existing secrets; use :func:`generate_key` or :meth:`load` instead.

        Args:
            parameters: the set that this key encrypts under.
            secrets: SEAL-serialised secret key of every parameter set, ``parameters`` among them.

        Raises:
            KeyMismatchError: there is no secret for ``parameters``.
        """
        if parameters not in secrets:
            raise KeyMismatchError(
                f"expected a key for the parameters {parameters!r}, got one for "
                f"{list(secrets)!r}; generate a key for these parameters"
            )
        self.parameters = parameters
        self._secrets = dict(secrets)
        self._root: bytes | None = None

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits that identify the key without revealing it."""
        digest = hashlib.sha256(b"fedsens key fingerprint 1")
        for parameters, secret in sorted(self._secrets.items(), key=lambda item: item[0].digest):
            digest.update(parameters.digest + hashlib.sha256(secret).digest())
        return digest.hexdigest()[:32]

    @property
    def parameter_sets(self) -> tuple[CkksParameters, ...]:
        """All parameter sets of the key, the one that it encrypts under first."""
        others = (each for each in self._secrets if each != self.parameters)
        return (self.parameters, *others)

    def using(self, parameters: CkksParameters) -> Self:
        """The same key under another of its parameter sets.

        Args:
            parameters: a set that the key was generated for.

        Returns:
            A key with the same fingerprint that encrypts under ``parameters``.
        """
        return type(self)(parameters, self._secrets)

    def seal_key(self) -> Any:
        """The SEAL object, for the codec."""
        parts = secret_stream(self._secrets[self.parameters], self.parameters)
        with seal_file() as file:
            return file.load(sealapi.SecretKey, seal_context(self.parameters), *parts)

    def derive(self, label: bytes) -> bytes:
        """A further secret that every holder of this key can compute, and nobody else.

        HKDF with SHA-256 (RFC 5869) from all secrets of the key, one block long.

        Args:
            label: what it is for; other labels give independent secrets.

        Returns:
            32 bytes.
        """
        if self._root is None:
            ordered = sorted(self._secrets.items(), key=lambda item: item[0].digest)
            material = b"".join(each.digest + secret for each, secret in ordered)
            self._root = hmac.digest(b"fedsens key derivation 1", material, "sha256")
        return hmac.digest(self._root, label + b"\x01", "sha256")

    def to_bytes(self) -> bytes:
        """The whole key as JSON bytes. Secret: seal or protect it wherever it goes."""
        keys = [
            {"parameters": parameters.model_dump(), "secret": base64.b64encode(secret).decode()}
            for parameters, secret in self._secrets.items()
        ]
        keys.sort(key=lambda item: item["parameters"] != self.parameters.model_dump())
        return json.dumps({
            "type": FILE_TYPE,
            "version": FILE_VERSION,
            "fingerprint": self.fingerprint,
            "keys": keys,
        }).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Rebuild a key from :meth:`to_bytes`.

        Args:
            data: the JSON bytes.

        Returns:
            The key.

        Raises:
            KeyFileError: the bytes are not a key of this version, or are damaged. SEAL has not
                seen them.
        """
        try:
            content = json.loads(data)
            if (content["type"], content["version"]) != (FILE_TYPE, FILE_VERSION):
                raise KeyFileError(
                    f"expected a {FILE_TYPE!r} of version {FILE_VERSION}, got another type or "
                    "version; use a key made by this version of fedsens"
                )
            secrets = {
                CkksParameters.model_validate(item["parameters"]): base64.b64decode(item["secret"])
                for item in content["keys"]
            }
            key = cls(next(iter(secrets)), secrets)
            intact = key.fingerprint == content["fingerprint"]
            for parameters, secret in secrets.items() if intact else ():
                secret_stream(secret, parameters)
        except (ValueError, KeyError, TypeError, StopIteration, RecursionError):
            intact = False
        if not intact:
            # The cause is dropped on purpose: its text could quote the secret.
            raise KeyFileError(
                "expected an intact key, got damaged bytes; restore a copy"
            ) from None
        return key

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the key to a new file that only its owner can read (mode 0600).

        A file that exists already is never overwritten: that is a KeyFileError.

        Args:
            path: where to write; the folder must exist.
        """
        write_private(Path(path), self.to_bytes())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a key file.

        Args:
            path: a file written by :meth:`save`.

        Returns:
            The key.
        """
        return cls.from_bytes(read_private(Path(path)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SecretKey):
            return NotImplemented
        return self.parameters == other.parameters and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash((self.parameters, self.fingerprint))

    def __repr__(self) -> str:
        return f"SecretKey(fingerprint={self.fingerprint!r}, parameters={self.parameters!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a SecretKey is not picklable; use save() or a sealed envelope")


def generate_key(parameters: CkksParameters, *more: CkksParameters) -> SecretKey:
    """Create a fresh secret key with SEAL's generator (ternary secret, system randomness).

    The key also covers :data:`~fedsens.crypto.params.MAP_PARAMETERS`, so that it serves a whole
    federation: parameters and sensitivity maps.

    Args:
        parameters: the set that the key encrypts under.
        *more: further sets that :meth:`SecretKey.using` can switch to; each has its own secret.

    Returns:
        The key.
    """
    secrets: dict[CkksParameters, bytes] = {}
    for each in dict.fromkeys((parameters, MAP_PARAMETERS, *more)):
        generator = sealapi.KeyGenerator(seal_context(each))
        with seal_file() as file:  # one for each, so that every secret is overwritten in it
            secrets[each] = file.dump(generator.secret_key())
    return SecretKey(parameters, secrets)


def write_private(path: Path, data: bytes) -> None:
    """Write a new file that only its owner can read, whole or not at all.

    Args:
        path: the file; it must not exist.
        data: the content.

    Raises:
        KeyFileError: the file exists already or cannot be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)  # unlike a rename, this fails where the file exists
    except OSError as error:
        raise KeyFileError(
            f"expected to write a new private file {path}, got: {error.strerror}; "
            "choose a path that does not exist in a writable folder"
        ) from None
    finally:
        draft.unlink(missing_ok=True)


def read_private(path: Path) -> bytes:
    """Read a file that must not be accessible to anyone but its owner.

    Args:
        path: the file.

    Returns:
        Its content.

    Raises:
        KeyFileError: it cannot be read, or its mode lets others in.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        data = path.read_bytes()
    except OSError as error:
        raise KeyFileError(f"expected a key file at {path}, got: {error.strerror}") from None
    if os.name == "posix" and mode & 0o077:
        raise KeyFileError(
            f"expected mode 0600 on {path}, got {mode:04o}; others could read it: chmod 600 it"
        )
    return data
