"""Files of tensors with a header and a checksum, and private files: written whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fedsens.errors import FedSensError, KeyFileError, ProtocolError

Arrays = dict[str, NDArray[Any]]

HEADER_KEY, CHECKSUM_KEY = "fedsens", "sha256"  # keys of safetensors's metadata

# What safetensors, NumPy and JSON raise on bytes that are not what they claim to be.
UNREADABLE = (
    OSError,
    SafetensorError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
)


def write_checked(path: str | os.PathLike[str], header: str, tensors: Arrays) -> None:
    """Write tensors and a JSON header, in one step, so that every change of either is seen."""
    write_tensors(path, tensors, {HEADER_KEY: header, CHECKSUM_KEY: _checksum(header, tensors)})


def read_checked(
    path: str | os.PathLike[str], kind: str, error: type[FedSensError] = ProtocolError
) -> tuple[str, Arrays]:
    """The header's text and the tensors of an intact file of :func:`write_checked`."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            header, checksum = metadata[HEADER_KEY], metadata[CHECKSUM_KEY]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not iterable
        intact = checksum == _checksum(header, tensors)
    except UNREADABLE as problem:
        raise error(
            f"expected an intact {kind} in {Path(path).name}, got {type(problem).__name__} on "
            "reading it; restore a copy"
        ) from None
    if not intact:
        raise error(
            f"expected a matching checksum of the {kind} in {Path(path).name}, got a damaged file; "
            "restore a copy"
        )
    return header, tensors


def read_header(path: str | os.PathLike[str]) -> str | None:
    """The header's text of a file of :func:`write_checked`, without reading the tensors.

    It is None if the file is none of these.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return (file.metadata() or {}).get(HEADER_KEY)
    except UNREADABLE:
        return None


def write_tensors(
    path: str | os.PathLike[str], tensors: Arrays, metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file that only its owner can read; one that exists is replaced.

    It is on the disk before it gets its name, so that a crash leaves the old file or the new one.

    Raises:
        FedSensError: it cannot be written.
    """
    target = Path(path)
    ordered = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    try:
        with _draft(target) as draft:
            save_file(ordered, draft.name, dict(metadata))
            os.fsync(draft.fileno())
            os.replace(draft.name, target)
        sync(target.parent)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FedSensError(f"expected to write {target}, got: {reason}") from None


def write_private(path: Path, data: bytes) -> None:
    """Write a new file that only its owner can read, whole or not at all.

    It is on the disk, name and all, when this returns.

    Raises:
        KeyFileError: the file exists already or cannot be written.
    """
    if not create_private(path, data):
        raise KeyFileError(
            f"expected to write a new private file {path}, got one that exists; choose a path that "
            "does not exist"
        )


def create_private(path: Path, data: bytes) -> bool:
    """As :func:`write_private`, but tell whether the file existed instead of raising.

    Of all calls that try at once, the one that makes the file, whose content is then whole,
    returns True.

    Raises:
        KeyFileError: the file cannot be written.
    """
    try:
        with _filled(path, data) as draft:
            try:
                os.link(draft, path)  # unlike a rename, this fails where the file exists
            except FileExistsError:
                return False
        sync(path.parent)
    except OSError as error:
        raise KeyFileError(
            f"expected to write a new private file {path}, got: {error.strerror}; "
            "choose a path in a writable folder with room"
        ) from None
    return True


def replace_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read; one that exists is replaced in one step."""
    try:
        with _filled(path, data) as draft:
            os.replace(draft, path)
        sync(path.parent)
    except OSError as error:
        raise KeyFileError(
            f"expected to write {path}, got: {error.strerror}; make room or choose another folder"
        ) from None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let others that lock this file, which need not exist, wait."""
    lock = path.with_name(f".{path.name}.lock")
    lock.touch(mode=0o600)
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def append_private(path: Path, data: bytes) -> None:
    """Add to a file that only its owner can read; it is made if it is missing.

    Whoever appends at the same time takes nothing away.

    Raises:
        KeyFileError: the file cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "ab") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        sync(path.parent)
    except OSError as error:
        raise KeyFileError(
            f"expected to write {path}, got: {error.strerror}; make room or choose another folder"
        ) from None


def read_private(path: Path) -> bytes:
    """The content of a file that must belong to this user and be accessible to nobody else.

    A file that cannot be read, belongs to somebody else, or whose mode lets others in is a
    KeyFileError.
    """
    return _read_own(path, 0o077, {os.geteuid()})


def read_guarded(path: Path) -> bytes:
    """The content of a file that others may read, but only this user or root can have written.

    A file that cannot be read, belongs to somebody else, or whose mode lets others write is a
    KeyFileError.
    """
    return _read_own(path, 0o022, {os.geteuid(), 0})


def private_folder(top: Path, *names: str) -> Path:
    """The lowest of folders below ``top``; it, ``top`` and all between are this user's own.

    What is missing is made with mode 0700, whatever the umask, the parents of ``top`` included.
    Parents that exist are the user's own business.

    Raises:
        KeyFileError: one cannot be made, is a link or no folder, belongs to somebody else, or
            others can write to it.
    """
    missing = [parent for parent in top.parents if not parent.exists()]
    try:
        for parent in reversed(missing):
            _make_folder(parent)
        folder = top
        _own_folder(folder)
        for name in names:
            folder /= name
            _own_folder(folder)
    except OSError as error:
        raise KeyFileError(
            f"expected a writable private folder {top.joinpath(*names)}, got: {error.strerror}; "
            "choose another place"
        ) from None
    return folder


def _own_folder(folder: Path) -> None:
    _make_folder(folder)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise KeyFileError(
            f"expected a folder at {folder}, got a link or a file; name the folder itself"
        )
    _check_own(folder, found, 0o022, {os.geteuid()})


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        return
    folder.chmod(0o700)  # the umask may have taken rights from the owner as well


def _read_own(path: Path, forbidden: int, owners: set[int]) -> bytes:
    # Owner and mode are those of the descriptor that is read, so that no other file can take the
    # name in between. A pipe would block until somebody writes to it.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise KeyFileError(f"expected a file at {path}, got a directory or a device")
            _check_own(path, found, forbidden, owners)
            return file.read()
    except OSError as error:
        raise KeyFileError(f"expected a file at {path}, got: {error.strerror}") from None


def _check_own(path: Path, found: os.stat_result, forbidden: int, owners: set[int]) -> None:
    if found.st_uid not in owners:
        raise KeyFileError(
            f"expected {path} to belong to user {os.geteuid()}, got user {found.st_uid}, who could "
            "change it; make it your own"
        )
    mode = stat.S_IMODE(found.st_mode)
    if mode & forbidden:
        wanted = 0o600 if forbidden & 0o044 else mode & ~forbidden
        doing = "read" if forbidden & 0o044 else "write to"
        raise KeyFileError(
            f"expected mode {wanted:04o} on {path}, got {mode:04o}; others could {doing} it: chmod "
            f"{wanted:o} it"
        )


@contextmanager
def _draft(target: Path) -> Iterator[IO[bytes]]:
    """A private file beside the target under a name that nobody can foresee; gone at the end."""
    with tempfile.NamedTemporaryFile(
        prefix=f".{target.name}.", dir=target.parent, delete=False
    ) as file:
        try:
            yield file
        finally:
            Path(file.name).unlink(missing_ok=True)


@contextmanager
def _filled(target: Path, data: bytes) -> Iterator[str]:
    """The name of a draft that holds the data, on the disk."""
    with _draft(target) as draft:
        draft.write(data)
        draft.flush()
        os.fsync(draft.fileno())
        yield draft.name


def erase_private(path: Path) -> None:
    """Overwrite a file, if there is one, with zeros; its name and its length stay.

    A file system that copies on write, or a disk that spreads its wear, may keep the old blocks.

    Raises:
        KeyFileError: it cannot be written, or it is a link.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "wb") as file:
            file.write(bytes(os.fstat(descriptor).st_size))
            file.flush()
            os.fsync(descriptor)
    except FileNotFoundError:
        return
    except OSError as error:
        raise KeyFileError(
            f"expected to erase {path}, got: {error.strerror}; delete it yourself"
        ) from None


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checksum(header: str, tensors: Arrays) -> str:
    # safetensors checks sizes only: a flipped bit of a weight would pass.
    content = sorted_digest(tensors)
    return hashlib.sha256(f"{header}|{content}".encode()).hexdigest()


def sorted_digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """As :func:`digest_of`, in whatever order the arrays are, as a file may have another."""
    return digest_of(dict(sorted(arrays.items())))


def digest_of(arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 (hexadecimal) of a whole model: names, types, shapes and bytes in order.

    It is a fingerprint for people who hold the model: never send it to a party that must not
    learn the model, since few masked values could be guessed from it.
    """
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name}|{array.dtype}|{list(array.shape)}|".encode())
        digest.update(np.asarray(array, order="C").tobytes())
    return digest.hexdigest()
