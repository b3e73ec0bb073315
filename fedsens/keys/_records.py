"""What a client remembers of a run: the last model, and its uploads with their one-time secrets.

The difference of two sums that hold one client's upload shows another client's, so an upload is
made once for each round, and its secret is given away, padded, for one list of contributors. Both
must hold whatever the server asks for again, between threads, between processes and after a crash
at any point.

An upload therefore goes through four steps, each of which makes one file that nothing makes twice
and that a later round alone removes::

    update-3.begun     before training: D, the context that it was asked for in
    update-3.secret    before it leaves: the secret, and what was uploaded with it
    update-3.list      before it is answered: digest of the list of contributors
    update-3.answer    the padded answer; from then on update-3.secret holds zeros

A file is made whole or not at all (a link to a draft that is on the disk), and of several that
make it at once one wins.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsens._files import (
    create_private,
    erase_private,
    locked,
    read_private,
    replace_private,
    sync,
)
from fedsens.errors import (
    ConfigurationError,
    DowngradeError,
    KeyFileError,
    ListError,
    MaskError,
    ProtocolError,
    RoundError,
)
from fedsens.mask import EncryptionMask
from fedsens.remainder import CentralPrivacy

logger = logging.getLogger(__name__)

# In the order in which they are removed: while a secret is there, so is the list that it is for.
SECRET, LIST, ANSWER, BEGUN = PARTS = ("secret", "list", "answer", "begun")
#: what a client says to a mask that would show what an earlier one covered
MOVED = (
    "expected a mask that covers whatever an earlier one of this model did, got one that would "
    "show it in plaintext; leave fedsens.moving-masks out, or allow it on this client with "
    "fedsens-moving-masks=true"
)
KIND = re.compile("[a-z]{1,20}")
# What JSON and its values raise where a record is not what this version writes.
UNREADABLE = (LookupError, TypeError, ValueError, OverflowError, RecursionError)
FILE = re.compile(rf"\.?([a-z]+)-([0-9]+)\.({'|'.join(PARTS)})(\..*)?")  # dots: a draft


class RunRecord:
    """Which global model this client opened last; older rounds and keys are refused by it."""

    def __init__(self, folder: Path) -> None:
        """Name the file in the client's folder of a run; nothing is created yet."""
        self._path, self._mask = folder / "model.json", folder / "mask"
        self._initial = folder / "initial"

    def record_model(
        self, server_round: int, model_round: int, key_index: int, sha256: str
    ) -> None:
        """Note the model that was opened.

        Args:
            server_round: the round that it was sent for.
            model_round: the round whose result it is.
            key_index: which key of the run opened it.
            sha256: digest of the opened model, for comparison with an export.
        """
        record = {
            "round": server_round,
            "model_round": model_round,
            "key_index": key_index,
            "sha256": sha256,
        }
        replace_private(self._path, json.dumps(record).encode())

    def first_initial(self, digest: str) -> str:
        """Note the initial model of the run, if there is none yet.

        Args:
            digest: of the model that came.

        Returns:
            The digest of the first one.
        """
        if create_private(self._initial, digest.encode()):
            logger.info("the initial model of this run is %s", digest)
            return digest
        return read_private(self._initial).decode("ascii", "replace")

    def record_mask(self, mask: EncryptionMask, moves: bool) -> None:
        """Note the mask of an answer that is about to be made.

        Args:
            mask: the mask.
            moves: whether it may leave out what the mask of an earlier answer covers.

        Raises:
            DowngradeError: it may not, and does.
        """
        with locked(self._mask):
            last = self._last_mask()
            if last == mask:
                return
            if last is not None and not moves and not mask.covers(last):
                raise DowngradeError(MOVED)
            replace_private(self._mask, mask.to_bytes())

    def last_mask(self) -> str:
        """Digest of the last recorded mask; empty if there is none."""
        last = self._last_mask()
        return "" if last is None else last.digest

    def _last_mask(self) -> EncryptionMask | None:
        if not os.path.lexists(self._mask):
            return None
        try:
            return EncryptionMask.from_bytes(read_private(self._mask))
        except MaskError:
            raise KeyFileError(
                f"expected the record of the last mask in {self._mask}, got other content; restore "
                "it, or take no further part in this run"
            ) from None

    def last_round(self) -> int:
        """Round of the last recorded model; 0 if there is none."""
        return self._recorded("round")

    def last_model_round(self) -> int:
        """Round whose result the last recorded model was; 0 if there is none."""
        return self._recorded("model_round")

    def last_key_index(self) -> int:
        """Which key opened the last recorded model; 0 if there is none."""
        return self._recorded("key_index")

    def _recorded(self, name: str) -> int:
        if not os.path.lexists(self._path):
            return 0
        try:
            return int(json.loads(read_private(self._path))[name])
        except UNREADABLE:
            raise KeyFileError(
                f"expected the record of the last model in {self._path}, got other content; delete "
                "it to accept any round again"
            ) from None


@dataclass(frozen=True, eq=False)
class PendingUpload:
    """An upload whose list of contributors has not been answered yet.

    Attributes:
        secret: s, small integers.
        weight: that the values were multiplied by.
        nonce: 16 bytes.
        context: D, 32 bytes.
        cohort: identity P and run identity E of all that were asked, in hexadecimal.
        key_index: which key of the run it is bound to.
        opens: who may open the sum, as D says.
        dp: what it has of central differential privacy; None where it has no noise.
    """

    secret: NDArray[np.int64] = field(repr=False)
    weight: float
    nonce: bytes
    context: bytes
    cohort: tuple[tuple[str, str], ...]
    key_index: int = 0
    opens: str = "clients"
    dp: CentralPrivacy | None = None

    def _to_content(self) -> dict[str, Any]:
        small = self.secret.astype("<i2")
        if self.secret.ndim != 1 or not np.array_equal(small, self.secret):
            raise ProtocolError("expected a vector of small integers as a secret, got another")
        return {
            "secret": base64.b64encode(small.tobytes()).decode(),
            "weight": float(self.weight),
            "nonce": self.nonce.hex(),
            "context": self.context.hex(),
            "cohort": self.cohort,
            "key_index": self.key_index,
            "opens": self.opens,
            "dp": None if self.dp is None else self.dp.model_dump(),
        }

    @classmethod
    def _of_content(cls, content: Any) -> PendingUpload:
        return cls(
            np.frombuffer(base64.b64decode(content["secret"]), "<i2").astype(np.int64),
            float(content["weight"]),
            bytes.fromhex(content["nonce"]),
            bytes.fromhex(content["context"]),
            tuple((str(lasting), str(of_run)) for lasting, of_run in content["cohort"]),
            int(content["key_index"]),
            str(content["opens"]),
            None if content["dp"] is None else CentralPrivacy.model_validate(content["dp"]),
        )


class UploadRecords:
    """One upload for each kind and round, ever, and one list of contributors for each upload."""

    def __init__(self, folder: Path) -> None:
        """Name the folder, which must exist; nothing is created yet.

        Args:
            folder: of this client in this run, private to its user.
        """
        self._folder = folder

    def begin(self, kind: str, server_round: int, context: bytes) -> None:
        """Record that an upload is going to be made, before anything is computed for it.

        The records of earlier rounds of this kind are removed, unused secrets among them.

        Args:
            kind: of upload: ``update``, ``map``, ``mask`` or ``metrics``.
            server_round: the round that it is for.
            context: D, 32 bytes.

        Raises:
            RoundError: the round was begun before, in whatever context, or a later one was.
        """
        self._check_newest(kind, server_round)
        if not self._create(kind, server_round, BEGUN, {"context": context.hex()}):
            raise RoundError(
                f"expected a round without {kind} of this client, got round {server_round}, which "
                "was answered already; a second one would reveal what the first one protects: "
                "begin another run"
            )
        # A later round that began meanwhile has removed what was here of this one.
        self._check_newest(kind, server_round)
        self._remove_before(kind, server_round)

    def keep(self, kind: str, server_round: int, pending: PendingUpload) -> None:
        """Store an upload's secret, right before the upload leaves.

        Raises:
            RoundError: the round was not begun in this context, has an upload already, or a later
                one has begun.

        A secret that is no vector of small integers is a ProtocolError.
        """
        begun = self._read(kind, server_round, BEGUN)
        if begun is None or begun.get("context") != pending.context.hex():
            raise RoundError(
                f"expected the context in which this client began its {kind} of round "
                f"{server_round}, got {'another' if begun else 'no beginning'}; begin a later round"
            )
        if not self._create(kind, server_round, SECRET, pending._to_content()):
            raise RoundError(
                f"expected one {kind} in round {server_round}, got a second one; begin a later "
                "round"
            )
        try:
            self._check_newest(kind, server_round)
        except RoundError:
            self._remove_before(kind, server_round + 1)
            raise

    def pending(self, kind: str, server_round: int) -> PendingUpload:
        """The upload of a kind and round whose list has not been answered.

        Raises:
            RoundError: there is none, or its list was answered.
            KeyFileError: its record is damaged.
        """
        path = self._path(kind, server_round, SECRET)
        content = self._read(kind, server_round, SECRET)
        if content is None:
            reason = "one whose list was answered" if path.exists() else "none"
            raise RoundError(
                f"expected the {kind} of round {server_round} with its secret, got {reason}"
            )
        try:
            return PendingUpload._of_content(content)
        except (*UNREADABLE, ConfigurationError):
            raise KeyFileError(_damaged(path)) from None

    def answer(
        self,
        kind: str,
        server_round: int,
        list_digest: bytes,
        compute: Callable[[PendingUpload], bytes],
    ) -> bytes:
        """Answer the list of an upload's contributors: always the same one, with the same bytes.

        The list is recorded before ``compute`` is called, so one that it refuses stays the only
        one that could be answered. The secret is overwritten when the answer is on the disk.

        Args:
            kind: of upload.
            server_round: its round.
            list_digest: identifies the list and the context.
            compute: makes the padded answer.

        Returns:
            The answer, whatever it was at the first time.

        Raises:
            RoundError: there is no upload of this kind and round.

        If another list was answered, or began to be, that is a ListError; a record that is damaged
        or cannot be written is a KeyFileError.
        """
        secret = self._path(kind, server_round, SECRET)
        self._check_newest(kind, server_round)
        if not os.path.lexists(secret):
            raise RoundError(
                f"expected the list of a round in which this client sent its {kind}, got round "
                f"{server_round}; leave it out of that list"
            )
        self._claim(kind, server_round, list_digest)
        answer = self._answered(kind, server_round)
        if answer is None:
            answer = self._compute(kind, server_round, compute)
        erase_private(secret)
        sync(self._folder)
        return answer

    def _claim(self, kind: str, server_round: int, list_digest: bytes) -> None:
        mine = {"list": list_digest.hex()}
        if self._create(kind, server_round, LIST, mine):
            return
        if self._read(kind, server_round, LIST) != mine:
            raise ListError(
                f"expected the list of contributors that was answered for the {kind} of round "
                f"{server_round}, got another; answers to two lists would reveal one client's share"
            )

    def _compute(
        self, kind: str, server_round: int, compute: Callable[[PendingUpload], bytes]
    ) -> bytes:
        try:
            pending = self.pending(kind, server_round)
        except (RoundError, KeyFileError):
            # Another message with the same list may have erased the secret while it was read.
            answered = self._answered(kind, server_round)
            if answered is None:
                raise
            return answered
        answer = compute(pending)
        content = {"answer": base64.b64encode(answer).decode()}
        made = self._create(kind, server_round, ANSWER, content)
        answered = None if made else self._answered(kind, server_round)
        return answer if answered is None else answered

    def _answered(self, kind: str, server_round: int) -> bytes | None:
        content = self._read(kind, server_round, ANSWER)
        try:
            return None if content is None else base64.b64decode(content["answer"])
        except UNREADABLE:
            raise KeyFileError(_damaged(self._path(kind, server_round, ANSWER))) from None

    def _check_newest(self, kind: str, server_round: int) -> None:
        newest = max((each for each, *_ in self._files(kind)), default=server_round)
        if server_round < newest:
            raise RoundError(f"expected round {newest} or later, got {server_round}")

    def _remove_before(self, kind: str, server_round: int) -> None:
        older = [file for file in self._files(kind, drafts=True) if file[0] < server_round]
        for _, _, path in sorted(older, key=lambda file: PARTS.index(file[1])):
            erase_private(path)
            path.unlink(missing_ok=True)
        sync(self._folder)

    def _files(self, kind: str, drafts: bool = False) -> Iterator[tuple[int, str, Path]]:
        """Round, part and path of the records of a kind."""
        for path in self._folder.iterdir():
            match = FILE.fullmatch(path.name)
            if match and match[1] == kind and (drafts or not match[4]):
                yield int(match[2]), match[3], path

    def _create(self, kind: str, server_round: int, part: str, content: dict[str, Any]) -> bool:
        """Make a record with a checksum; whether it is this call that made it."""
        body = json.dumps(content).encode()
        data = hashlib.sha256(body).hexdigest().encode() + b"\n" + body
        try:
            return create_private(self._path(kind, server_round, part), data)
        except KeyFileError:
            self._check_newest(kind, server_round)  # which removes drafts of earlier ones
            raise

    def _read(self, kind: str, server_round: int, part: str) -> dict[str, Any] | None:
        """The content of a record; None if there is none or it was erased."""
        path = self._path(kind, server_round, part)
        if not os.path.lexists(path):
            return None
        try:
            return _checked(path)
        except KeyFileError:
            self._check_newest(kind, server_round)  # which removes records of earlier ones
            raise

    def _path(self, kind: str, server_round: int, part: str) -> Path:
        if not KIND.fullmatch(kind) or server_round < 0:
            raise ProtocolError(
                "expected a kind of upload in lower-case letters and a round from 0"
            )
        return self._folder / f"{kind}-{server_round}.{part}"


def _checked(path: Path) -> dict[str, Any] | None:
    data = read_private(path)
    if data and not any(data):  # erased
        return None
    digest, _, body = data.partition(b"\n")
    if digest != hashlib.sha256(body).hexdigest().encode():
        raise KeyFileError(_damaged(path))
    try:
        return dict(json.loads(body))
    except UNREADABLE:
        raise KeyFileError(_damaged(path)) from None


def _damaged(path: Path) -> str:
    return (
        f"expected an intact record in {path}, got a damaged one; its round cannot be answered, "
        "later ones can"
    )
