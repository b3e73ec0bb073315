"""KeyStore: a client's own folder with its identities and its keys.

Every Flower message starts a fresh client process, so what must last lives in files: mode 0600 in
folders of mode 0700, by run and node. Never in Flower's state, which the server's side stores.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from functools import cached_property, partial
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedsens._files import append_private, create_private, private_folder, read_private
from fedsens.errors import KeyFileError, KeyMismatchError, RosterError
from fedsens.keys._file import locked_key_in, read_passphrase
from fedsens.keys._identity import is_public_key, load_identity, read_roster
from fedsens.keys._key import FederationKey
from fedsens.keys._records import RunRecord
from fedsens.keys._settings import ClientSettings

logger = logging.getLogger(__name__)


class KeyStore:
    """Identities and keys of one client in one run.

    A run may have several keys, one after the other. ``key_index`` says how often its key had been
    rotated when one came into use: the first is 0.
    """

    def __init__(self, settings: ClientSettings, run_id: int, node_id: int) -> None:
        """Name the files of a run and node of Flower's; nothing is created yet."""
        self._settings = settings
        self._keys: dict[int, FederationKey] = {}
        self.run = str(run_id)
        self._names = f"run-{run_id}", f"node-{node_id}"
        self._folder = settings.state_dir.joinpath(*self._names)

    @property
    def folder(self) -> Path:
        """This client's folder in this run, made if it is missing (mode 0700).

        Raises:
            KeyFileError: it or one above it in the state folder cannot be made, is a link, belongs
                to somebody else, or others can write to it.
        """
        try:
            return private_folder(self._settings.state_dir, *self._names)
        except KeyFileError as error:
            raise KeyFileError(f"{error}, or set fedsens-state-dir") from None

    @property
    def record(self) -> RunRecord:
        """Which model this client opened last in this run."""
        return RunRecord(self._folder)

    def first_terms(self, run: str, terms: str) -> str:
        """Note by what the masks of a run's models are made, if that is not known yet.

        All clients in one state folder share it, since it is the same for all.

        Args:
            run: in which the model was made.
            terms: digest of policy, ratio and whatever else a mask is made by.

        Returns:
            The digest that came first.
        """
        path = private_folder(self._settings.state_dir, f"run-{int(run)}") / "mask-terms"
        if create_private(path, terms.encode()):
            return terms
        return read_private(path).decode("ascii", "replace")

    @cached_property
    def identity(self) -> X25519PrivateKey:
        """P: this client's X25519 key pair, created on first use."""
        return load_identity(self._settings.identity_file or self.folder / "identity")

    @property
    def public_key(self) -> bytes:
        """The raw public half of :attr:`identity` (32 bytes)."""
        return self.identity.public_key().public_bytes_raw()

    @cached_property
    def run_identity(self) -> X25519PrivateKey:
        """E: this client's X25519 key pair of this run alone, created on first use."""
        return load_identity(self.folder / "run-identity")

    @property
    def run_public_key(self) -> bytes:
        """The raw public half of :attr:`run_identity` (32 bytes)."""
        return self.run_identity.public_key().public_bytes_raw()

    @property
    def name(self) -> str:
        """The contributor's name: :attr:`public_key` in hexadecimal.

        Never the node's number, which the server assigns: it could give one client two.
        """
        return self.public_key.hex()

    @property
    def members(self) -> frozenset[str] | None:
        """Contributors that count for this client: a pinned roster's; None if all do.

        A roster counts here if this client itself goes by an identity of its own.
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
        """Whether this client has any key of the run, provisioned or agreed."""
        return self.provisioned or any(self._own_files())

    @property
    def key(self) -> FederationKey | None:
        """The key in force: the one that was used last; None if there is none."""
        return self.key_of(RunRecord(self._folder).last_key_index())

    def key_of(self, key_index: int) -> FederationKey | None:
        """A provisioned key, else an agreed one, else None.

        Of a folder of provisioned keys it is the one at this place, by name.
        """
        if key_index not in self._keys:
            path = self._files().get(key_index)
            if path is None:
                return None
            place = self._settings.passphrase_file
            ask = None if place is None else partial(read_passphrase, place)
            key = FederationKey.load(path, ask)
            self._check_new(key, key_index, self._files().items())
            self._keys[key_index] = key
        return self._keys[key_index]

    def keep(self, key: FederationKey, parties: Iterable[bytes] = (), key_index: int = 0) -> None:
        """Store an agreed key.

        Args:
            key: the key.
            parties: raw public keys of the others that this client knows to hold it.
            key_index: which key of the run it is to be.

        Raises:
            KeyMismatchError: this client already holds another key at this place, or this key at
                another place, in this run or an earlier one: then the rotation would rotate
                nothing.
        """
        held = self.key_of(key_index)
        if held is None:
            if self.provisioned:
                raise KeyMismatchError(
                    f"expected key {key_index + 1} in fedsens-key-file, because this "
                    "client's keys are provisioned, got none; place it there"
                )
            self._check_new(key, key_index, self._agreed())
            held = self._save(key, key_index)
        if held != key:
            raise KeyMismatchError(
                f"expected the key {held.fingerprint} that this client already holds, got "
                f"{key.fingerprint}; a key does not change within a run unless it is rotated"
            )
        self.note_parties(parties, key_index)

    def note_parties(self, parties: Iterable[bytes], key_index: int = 0) -> None:
        """Remember raw public keys with whom a key is shared, for :meth:`adopt`."""
        lines = "".join(f"{each.hex()}\n" for each in parties)
        append_private(self.folder / f"{_file_name(key_index)}.parties", lines.encode())

    def adopt(self, fingerprint: str, key_index: int = 0) -> None:
        """Take over the key of an earlier run of this client, for a run that continues it.

        With a pinned roster only a key that was shared within the roster is taken, so that a
        resumed run trusts nobody whom a new run would not trust. Node numbers may have changed
        since, so every earlier key in the state folder counts: it has one owner.

        Args:
            fingerprint: of the key; nothing happens if this client never held it.
            key_index: which key of the run it was and will be.
        """
        if self.provisioned or not fingerprint or self.key_of(key_index) is not None:
            return
        for _, path in self._agreed():
            this_run = path.parent.parent == self._folder.parent
            if this_run or _fingerprint_in(path) != fingerprint:
                continue
            parties = path.with_name(f"{path.name}.parties")
            if self._settings.roster_file is not None:
                self.check_roster(_read_parties(parties))
            known = _read_parties(parties) if parties.exists() else []
            logger.info("continuing with the key of %s", path.parent.parent.name)
            self.keep(FederationKey.load(path), known, key_index)
            return

    def check_roster(self, public_keys: list[bytes]) -> None:
        """Check raw public keys against the pinned roster, if there is one.

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

    def _save(self, key: FederationKey, key_index: int) -> FederationKey:
        """Store a key, unless another message has just stored one; the key that is there then."""
        path = self.folder / _file_name(key_index)
        try:
            key.save(path)
        except KeyFileError:
            if not path.exists():
                raise
        return self.key_of(key_index) or key

    def _files(self) -> dict[int, Path]:
        """The key files of this run."""
        place = self._settings.key_file
        if place is None:
            return dict(self._own_files())
        files = sorted(place.glob("*.key")) if place.is_dir() else [place]
        if not files:
            raise KeyFileError(f"expected key files *.key in {place}, got none; place them there")
        return dict(enumerate(files))

    def _own_files(self) -> Iterator[tuple[int, Path]]:
        return _key_files(self._folder.glob("key*"))

    def _agreed(self) -> Iterator[tuple[int, Path]]:
        """The agreed keys of all runs in the state folder."""
        return _key_files(sorted(self._settings.state_dir.glob("run-*/node-*/key*")))

    def _check_new(
        self, key: FederationKey, key_index: int, files: Iterable[tuple[int, Path]]
    ) -> None:
        """Refuse an old key in a new place: whoever was shut out by the rotation holds it."""
        for place, path in files:
            if place != key_index and _fingerprint_in(path) == key.fingerprint:
                raise KeyMismatchError(
                    f"expected a key that was never used before as key {key_index + 1} of this "
                    f"run, got {key.fingerprint}, which is key {place + 1} in {path.name}; rotate "
                    "to a new one"
                )


def _file_name(key_index: int) -> str:
    return f"key-{key_index}" if key_index else "key"


def _key_files(paths: Iterable[Path]) -> Iterator[tuple[int, Path]]:
    for path in paths:
        number = path.name.removeprefix("key").removeprefix("-") or "0"
        if number.isdecimal() and path.name == _file_name(int(number)):
            yield int(number), path


def _fingerprint_in(path: Path) -> str | None:
    try:
        data = read_private(path)
        return (locked_key_in(data) or FederationKey.from_bytes(data)).fingerprint
    except KeyFileError as error:  # it may be of a run that is none of our business
        logger.warning("passed over a key file: %s", error)
        return None


def _read_parties(path: Path) -> list[bytes]:
    try:
        lines = read_private(path).decode().splitlines()
    except (KeyFileError, ValueError):
        lines = [""]
    if not all(map(is_public_key, lines)):
        raise RosterError(
            f"expected the public keys that a key is shared with in {path.name}, got none; start "
            "the run anew, without fedsens.resume, to agree on a new key"
        )
    return [bytes.fromhex(line) for line in lines]
