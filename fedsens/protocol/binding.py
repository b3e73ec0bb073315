"""One mask for each round, as one client remembers it in its state folder."""

from __future__ import annotations

from pathlib import Path

from fedsens.crypto.keys import write_private
from fedsens.errors import KeyFileError, MaskError, RoundError


def bind_mask(folder: Path, server_round: int, digest: str) -> None:
    """Remember the mask of a round, or refuse another one.

    Two complementary masks in one round would reveal the whole update. The file is made in one
    step before training begins, so of two messages at once only one can decide.

    Args:
        folder: the client's folder of this run, which exists.
        server_round: the round.
        digest: of the mask that the answer is to be split by.

    Raises:
        MaskError: the round has another mask already.
        KeyFileError: the folder cannot be written.

    A later round that has begun is a RoundError.
    """
    path = folder / f"mask-{server_round}"
    _check_newest(folder, server_round)
    if not path.exists():
        try:
            write_private(path, digest.encode())
        except KeyFileError:
            if not path.exists():
                raise
    bound = path.read_bytes() == digest.encode()
    _check_newest(folder, server_round)  # a later round's message removes what was bound before
    if not bound:
        raise MaskError(
            f"expected the mask that round {server_round} began with, got the mask "
            f"{digest[:16]}...; two masks in one round would reveal what one of them protects"
        )
    for old in folder.glob("mask-*"):
        if _round_of(old) < server_round:
            old.unlink(missing_ok=True)


def _check_newest(folder: Path, server_round: int) -> None:
    newest = max(map(_round_of, folder.glob("mask-*")), default=0)
    if server_round < newest:
        raise RoundError(f"expected round {newest} or later, got {server_round}")


def _round_of(path: Path) -> int:
    number = path.name.removeprefix("mask-")
    return int(number) if number.isdecimal() else 0
