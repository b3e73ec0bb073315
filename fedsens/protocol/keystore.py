"""KeyStore: a client's own folder with its identity, its key and a record of the last model.

Every Flower message starts a fresh client process, so what must last lives in files: mode 0600 in
a folder of mode 0700, by run and node. Never in Flower's state, which the server's side stores.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from functools import cached_property, partial
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedsens.crypto import SecretKey
from fedsens.errors import KeyFileError, KeyMismatchError, RosterError
from fedsens.protocol.binding import bind_mask
from fedsens.protocol.headers import ModelHeader
from fedsens.protocol.keyfile import load_key, read_passphrase
from fedsens.protocol.roster import load_identity, parse_public_keys, read_roster
from fedsens.protocol.settings import ClientSettings

logger = logging.getLogger(__name__)


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
        self._keys: dict[int, SecretKey] = {}
        self.run = str(run_id)
        self._node = node_id
        self._folder = settings.state_dir / f"run-{run_id}" / f"node-{node_id}"

    @cached_property
    def identity(self) -> X25519PrivateKey:
        """This client's X25519 key pair, created on first use."""
        return load_identity(self._settings.identity_file or self._prepare() / "identity")

    @property
    def public_key(self) -> bytes:
        """The raw public half of :attr:`identity` (32 bytes)."""
        return self.identity.public_key().public_bytes_raw()

    @property
    def folder(self) -> Path:
        """This client's folder in this run, made if it is missing (mode 0700)."""
        return self._prepare()

    @property
    def contributor(self) -> str:
        """The name that this client tags its values with.

        The server assigns node numbers and could give one client two, so a client with an identity
        of its own uses that.
        """
        return str(self._node) if self._settings.identity_file is None else self.public_key.hex()

    @property
    def members(self) -> frozenset[str] | None:
        """Contributors that count for this client: a pinned roster's; None if all do.

        A roster counts here if this client itself goes by its identity.
        """
        path = self._settings.roster_file
        if path is None or self._settings.identity_file is None:
            return None
        return frozenset(key.hex() for key in read_roster(path))

    @property
    def provisioned(self) -> bool:
        """Whether keys come from files that the operator placed."""
        return self._settings.key_file is not None

    @property
    def holds_key(self) -> bool:
        """Whether this client has a key of any generation, provisioned or agreed."""
        return self.provisioned or any(not path.suffix for path in self._folder.glob("key*"))

    @property
    def key(self) -> SecretKey | None:
        """The key in force: of the generation that was used last; None if there is none."""
        return self.key_of(self.last_generation())

    def key_of(self, generation: int) -> SecretKey | None:
        """A provisioned key, else an agreed one, else None.

        Args:
            generation: how often the key of the run had been rotated when it came into use.

        Returns:
            The key. Of a folder of provisioned keys it is the one at this place, by name.
        """
        if generation not in self._keys:
            path = self._path_of(generation)
            if path is None:
                return None
            place = self._settings.passphrase_file
            ask = None if place is None else partial(read_passphrase, place)
            self._keys[generation] = load_key(path, ask)
        return self._keys[generation]

    def keep(self, key: SecretKey, parties: Iterable[bytes] = (), generation: int = 0) -> None:
        """Store an agreed key.

        Args:
            key: the key.
            parties: raw public keys of the others that this client knows to hold it.
            generation: see :meth:`key_of`.

        Raises:
            KeyMismatchError: this client already holds another key of this generation.
        """
        held = self.key_of(generation)
        if held is None:
            if self.provisioned:
                raise KeyMismatchError(
                    f"expected key {generation + 1} in {self._settings.key_file}, because this "
                    "client's keys are provisioned, got none; place it there"
                )
            key.save(self._prepare() / _name(generation))
            self._keys[generation] = held = key
        if held.fingerprint != key.fingerprint:
            raise KeyMismatchError(
                f"expected the key {held.fingerprint} that this client already holds, got "
                f"{key.fingerprint}; a key does not change within a run unless it is rotated"
            )
        self.note_parties(parties, generation)

    def note_parties(self, parties: Iterable[bytes], generation: int = 0) -> None:
        """Remember with whom a key is shared, for :meth:`adopt`.

        Args:
            parties: raw public keys.
            generation: of the key.
        """
        path = self._prepare() / f"{_name(generation)}.parties.json"
        known = set(_read_parties(path)) if path.exists() else set[bytes]()
        self._write(path, json.dumps(sorted(each.hex() for each in known | set(parties))))

    def adopt(self, fingerprint: str, generation: int = 0) -> None:
        """Take over the key of an earlier run of this client, for a run that continues it.

        With a pinned roster only a key that was shared within the roster is taken, so that a
        resumed run trusts nobody whom a new run would not trust. Node numbers may have changed
        since, so every earlier key in the state folder counts: it has one owner.

        Args:
            fingerprint: of the key; nothing happens if this client never held it.
            generation: of the key.
        """
        if self.provisioned or not fingerprint or self.key_of(generation) is not None:
            return
        for path in sorted(self._settings.state_dir.glob("run-*/node-*/key*")):
            this_run = path.parent.parent == self._folder.parent
            if this_run or path.suffix or _fingerprint_in(path) != fingerprint:
                continue
            parties = path.with_name(f"{path.name}.parties.json")
            if self._settings.roster_file is not None:
                self.check_roster(_read_parties(parties))
            known = _read_parties(parties) if parties.exists() else ()
            logger.info("continuing with the key of %s", path.parent.parent.name)
            self.keep(SecretKey.load(path), known, generation)
            return

    def _path_of(self, generation: int) -> Path | None:
        place = self._settings.key_file
        if place is None:
            path = self._folder / _name(generation)
            return path if path.exists() else None
        files = sorted(place.glob("*.key")) if place.is_dir() else [place]
        if not files:
            raise KeyFileError(f"expected key files *.key in {place}, got none; place them there")
        return files[generation] if generation < len(files) else None

    def check_roster(self, public_keys: list[bytes]) -> None:
        """Check public keys against the pinned roster, if there is one.

        Args:
            public_keys: raw X25519 public keys.

        Raises:
            RosterError: a key is not in the roster.
        """
        path = self._settings.roster_file
        if path is None:
            return
        pinned = read_roster(path)
        unknown = [key.hex()[:16] for key in public_keys if key not in pinned]
        if unknown:
            raise RosterError(
                f"expected only public keys of the pinned roster, got also {', '.join(unknown)}; "
                "add them to the roster if these clients are yours"
            )

    def record_model(self, header: ModelHeader, sha256: str) -> None:
        """Note which global model this client opened last.

        An export is compared with it, and older rounds and keys are refused from then on.

        Args:
            header: what the server said about it.
            sha256: digest of the opened model.
        """
        record = {
            "round": header.round,
            "model_round": header.model_round,
            "generation": header.generation,
            "sha256": sha256,
        }
        self._write(self._prepare() / "model.json", json.dumps(record))

    def bind_mask(self, header: ModelHeader) -> None:
        """Accept one mask in a round only, see :func:`~fedsens.protocol.binding.bind_mask`.

        Args:
            header: of the model, with the mask for the answer.
        """
        bind_mask(self._prepare(), header.round, header.mask)

    def last_model_round(self) -> int:
        """Round whose result the last recorded model was; 0 if there is none."""
        return self._recorded("model_round")

    def last_round(self) -> int:
        """Round of the last recorded model; 0 if there is none."""
        return self._recorded("round")

    def last_generation(self) -> int:
        """Generation of the key that opened the last recorded model; 0 if there is none."""
        return self._recorded("generation")

    def _recorded(self, name: str) -> int:
        path = self._folder / "model.json"
        try:
            return int(json.loads(path.read_text())[name]) if path.exists() else 0
        except (OSError, ValueError, TypeError, KeyError):
            raise KeyFileError(
                f"expected the record of the last model in {path}, got other content; delete it "
                "to accept any round again"
            ) from None

    def _write(self, path: Path, text: str) -> None:
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            draft.touch(mode=0o600)
            draft.write_text(text)
            draft.replace(path)
        except OSError as error:
            raise KeyFileError(
                f"expected to write {path}, got: {error.strerror}; make room or set "
                "fedsens-state-dir"
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


def _name(generation: int) -> str:
    return f"key-{generation}" if generation else "key"


def _fingerprint_in(path: Path) -> str | None:
    try:
        return SecretKey.load(path).fingerprint
    except KeyFileError as error:  # of a run that is none of our business
        logger.warning("passed over an earlier key: %s", error)
        return None


def _read_parties(path: Path) -> list[bytes]:
    try:
        return parse_public_keys(path.read_text())
    except (OSError, ValueError):
        raise RosterError(
            f"expected the public keys that a key is shared with in {path}, got none; start the "
            "run anew, without fedsens.resume, to agree on a new key"
        ) from None
