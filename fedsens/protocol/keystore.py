"""KeyStore: a client's own folder with its identity, its key and a record of the last model.

Every Flower message starts a fresh client process, so what must last lives in files: mode 0600 in
a folder of mode 0700, by run and node. Never in Flower's state, which the server's side stores.
"""

from __future__ import annotations

import json
import os
from functools import cached_property
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedsens.crypto import SecretKey
from fedsens.crypto.keys import read_private, write_private
from fedsens.errors import KeyFileError, KeyMismatchError, RosterError
from fedsens.protocol.headers import ModelHeader
from fedsens.protocol.settings import ClientSettings


class KeyStore:
    """Files of one client in one run."""

    def __init__(self, settings: ClientSettings, run_id: int, node_id: int) -> None:
        """Name the files; nothing is created yet.

        Args:
            settings: the client's settings.
            run_id: Flower's run.
            node_id: this client's node.
        """
        self._settings = settings
        self.run = str(run_id)
        self._folder = settings.state_dir / f"run-{run_id}" / f"node-{node_id}"

    @cached_property
    def identity(self) -> X25519PrivateKey:
        """This client's X25519 key pair, created on first use.

        Raises:
            KeyFileError: the identity file cannot be read or is damaged.
        """
        path = self._settings.identity_file or self._prepare() / "identity"
        if not path.exists():
            write_private(path, X25519PrivateKey.generate().private_bytes_raw())
        try:
            return X25519PrivateKey.from_private_bytes(read_private(path))
        except ValueError:
            raise KeyFileError(
                f"expected an identity of 32 bytes in {path}; delete it to make a new one"
            ) from None

    @property
    def public_key(self) -> bytes:
        """The raw public half of :attr:`identity` (32 bytes)."""
        return self.identity.public_key().public_bytes_raw()

    @property
    def provisioned(self) -> bool:
        """Whether the key comes from a file that the operator placed."""
        return self._settings.key_file is not None

    @cached_property
    def key(self) -> SecretKey | None:
        """The provisioned key, else the agreed one, else None."""
        path = self._settings.key_file or self._folder / "key"
        return SecretKey.load(path) if self.provisioned or path.exists() else None

    def keep(self, key: SecretKey) -> None:
        """Store an agreed key.

        Args:
            key: the key.

        Raises:
            KeyMismatchError: this client already holds another key for this run.
        """
        if self.key is not None:
            if self.key.fingerprint != key.fingerprint:
                raise KeyMismatchError(
                    f"expected the key {self.key.fingerprint} that this client already holds, got "
                    f"{key.fingerprint}; a key does not change within a run"
                )
            return
        key.save(self._prepare() / "key")
        self.key = key

    def check_roster(self, public_keys: list[bytes]) -> None:
        """Check public keys against the pinned roster, if there is one.

        Args:
            public_keys: raw X25519 public keys.

        Raises:
            RosterError: a key is not in the roster, or the roster cannot be read.
        """
        path = self._settings.roster_file
        if path is None:
            return
        try:
            pinned = {bytes.fromhex(item) for item in json.loads(path.read_text())}
        except (OSError, ValueError, TypeError):
            raise RosterError(
                f"expected a JSON list of hexadecimal public keys in {path}; fix the file"
            ) from None
        unknown = [key.hex()[:16] for key in public_keys if key not in pinned]
        if unknown:
            raise RosterError(
                f"expected only public keys of the pinned roster, got also {', '.join(unknown)}; "
                "add them to the roster if these clients are yours"
            )

    def record_model(self, header: ModelHeader, sha256: str) -> None:
        """Note which global model this client opened last, to compare an export with.

        Args:
            header: what the server said about it.
            sha256: digest of the opened model.

        Raises:
            KeyFileError: the record cannot be written.
        """
        path = self._prepare() / "model.json"
        draft = path.with_suffix(f".{os.getpid()}")
        record = {"round": header.round, "model_round": header.model_round, "sha256": sha256}
        try:
            draft.touch(mode=0o600)
            draft.write_text(json.dumps(record))
            draft.replace(path)
        except OSError as error:
            raise KeyFileError(
                f"expected to write {path}, got: {error.strerror}; make room or set "
                "fedsens-state-dir"
            ) from None

    def last_round(self) -> int:
        """Round of the last recorded model; 0 if there is none.

        Raises:
            KeyFileError: the record cannot be read or is damaged.
        """
        path = self._folder / "model.json"
        try:
            return int(json.loads(path.read_text())["round"]) if path.exists() else 0
        except (OSError, ValueError, TypeError, KeyError):
            raise KeyFileError(
                f"expected the record of the last model in {path}, got other content; delete it "
                "to accept any round again"
            ) from None

    def _prepare(self) -> Path:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise KeyFileError(
                f"expected a writable state folder, got {self._folder}: {error.strerror}; "
                "set fedsens-state-dir"
            ) from None
        return self._folder
