"""Several byte strings in one input, which are mutated one by one so that the others stay whole."""

from __future__ import annotations

import json
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


def split_file(data: bytes) -> list[bytes]:
    """The parts of a safetensors file of fedsens: its own header, safetensors's header, tensors."""
    try:
        (length,) = struct.unpack_from("<Q", data)
        head = json.loads(data[8 : 8 + length])
        own = head["__metadata__"].pop("fedsens").encode()
        return [own, json.dumps(head).encode(), data[8 + length :]]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error):
        return [data]


def join_file(parts: list[bytes]) -> bytes:
    """Undo :func:`split_file`."""
    if len(parts) == 1:
        return parts[0]
    own, text, tensors = parts
    try:
        head = json.loads(text)
        head["__metadata__"]["fedsens"] = own.decode(errors="replace")
        text = json.dumps(head).encode()
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    return struct.pack("<Q", len(text)) + text + tensors


def whole(data: bytes) -> list[bytes]:
    """An input of one part."""
    return [data]
