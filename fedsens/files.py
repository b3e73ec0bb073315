"""Files: tensors with a header and a checksum, and private files, written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fedsens.errors import FedSensError, KeyFileError, ProtocolError

Arrays = dict[str, NDArray[Any]]

HEADER, CHECKSUM = "fedsens", "sha256"  # keys of safetensors's metadata

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
    """Write tensors and a header so that every change of either is seen.

    Args:
        path: the file; replaced in one step if it exists.
        header: JSON text.
        tensors: name to array.
    """
    write_tensors(path, tensors, {HEADER: header, CHECKSUM: _checksum(header, tensors)})


def read_checked(
    path: str | os.PathLike[str], kind: str, error: type[FedSensError] = ProtocolError
) -> tuple[str, Arrays]:
    """Read a file of :func:`write_checked`.

    Args:
        path: the file.
        kind: what it should be, for the error.
        error: what to raise if the file is missing or damaged, or none of fedsens's.

    Returns:
        The header's text and the tensors, whose checksum is right.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            header, checksum = metadata[HEADER], metadata[CHECKSUM]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not iterable
        intact = checksum == _checksum(header, tensors)
    except UNREADABLE as problem:
        raise error(
            f"expected an intact {kind} in {path}, got {type(problem).__name__} on reading it; "
            "restore a copy"
        ) from None
    if not intact:
        raise error(
            f"expected a matching checksum of the {kind} in {path}, got a damaged file; "
            "restore a copy"
        )
    return header, tensors


def read_header(path: str | os.PathLike[str]) -> str | None:
    """The header's text of a file of :func:`write_checked`, without reading the tensors.

    Args:
        path: the file.

    Returns:
        The text, None if the file is none of these.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return (file.metadata() or {}).get(HEADER)
    except UNREADABLE:
        return None


def write_tensors(
    path: str | os.PathLike[str], tensors: Arrays, metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file that only its owner can read.

    It is on the disk before it gets its name, so that a crash leaves the old file or the new one.

    Args:
        path: the file; replaced in one step if it exists.
        tensors: name to array.
        metadata: of safetensors.

    Raises:
        FedSensError: it cannot be written.
    """
    target = Path(path)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        draft.touch(mode=0o600)
        ordered = {name: np.asarray(array, order="C") for name, array in tensors.items()}
        save_file(ordered, draft, dict(metadata))
        _sync(draft)
        draft.replace(target)
        _sync(target.parent)
    except OSError as error:
        raise FedSensError(f"expected to write {target}, got: {error.strerror}") from None
    finally:
        draft.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checksum(header: str, tensors: Arrays) -> str:
    # safetensors checks sizes only: a flipped bit of a weight would pass.
    content = digest_of(dict(sorted(tensors.items())))
    return hashlib.sha256(f"{header}|{content}".encode()).hexdigest()


def digest_of(arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 (hexadecimal) of a whole model: names, types, shapes and bytes in order.

    Args:
        arrays: name to array.

    Returns:
        The digest. It is a fingerprint for people who hold the model: never send it to a party
        that must not learn the model, since few masked values could be guessed from it.
    """
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name}|{array.dtype}|{list(array.shape)}|".encode())
        digest.update(np.asarray(array, order="C").tobytes())
    return digest.hexdigest()


def write_private(path: Path, data: bytes) -> None:
    """Write a new file that only its owner can read, whole or not at all.

    Args:
        path: the file; it must not exist.
        data: the content.

    Raises:
        KeyFileError: the file exists already or cannot be written.
    """
    draft: Path | None = None
    try:
        # A name that nobody can foresee, made with mode 0600 and O_EXCL: nothing that another
        # process or user has put there is followed or shared.
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        draft = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)  # unlike a rename, this fails where the file exists
        _sync(path.parent)
    except OSError as error:
        raise KeyFileError(
            f"expected to write a new private file {path}, got: {error.strerror}; "
            "choose a path that does not exist in a writable folder"
        ) from None
    finally:
        if draft is not None:
            draft.unlink(missing_ok=True)


def read_private(path: Path) -> bytes:
    """Read a file that must belong to this user and be accessible to nobody else.

    Owner and mode are those of the descriptor that is read, so that no other file can take the
    name in between.

    Args:
        path: the file.

    Returns:
        Its content.

    Raises:
        KeyFileError: it cannot be read, belongs to somebody else, or its mode lets others in.
    """
    try:
        with path.open("rb") as file:
            _check_private(path, os.fstat(file.fileno()))
            return file.read()
    except OSError as error:
        raise KeyFileError(f"expected a private file {path}, got: {error.strerror}") from None


def _check_private(path: Path, found: os.stat_result) -> None:
    if os.name != "posix":
        return
    if found.st_uid != os.geteuid():
        raise KeyFileError(
            f"expected {path} to belong to user {os.geteuid()}, got user {found.st_uid}, who could "
            "change it; copy it to a file of your own"
        )
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        raise KeyFileError(
            f"expected mode 0600 on {path}, got {mode:04o}; others could read it: chmod 600 it"
        )
