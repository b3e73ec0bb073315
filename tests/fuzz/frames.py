"""Several byte strings in one input: a message has a header, masks, a ciphertext and arrays."""

from __future__ import annotations

import struct
from collections.abc import Iterable

LENGTH = struct.Struct("<I")


def join(frames: Iterable[bytes]) -> bytes:
    """One byte string of several."""
    return b"".join(LENGTH.pack(len(frame)) + frame for frame in frames)


def split(data: bytes) -> list[bytes]:
    """Undo :func:`join`; every byte string is split somehow, a length too large ends at the end."""
    frames, start = [], 0
    while start + LENGTH.size <= len(data):
        (length,) = LENGTH.unpack_from(data, start)
        start += LENGTH.size
        frames.append(data[start : start + length])
        start += length
    return frames
