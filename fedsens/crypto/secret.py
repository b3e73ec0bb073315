"""A secret key between SEAL's file and memory, checked before SEAL reads it.

A key comes from a file, or from another client in an envelope: its bytes are another party's. They
are SEAL's own compressed form. Here they are expanded within a bound, and everything but the
residues must be what SEAL writes for these parameters.
"""

from __future__ import annotations

import struct

import numpy as np
import zstandard

from fedsens.crypto.params import DEGREE, CkksParameters
from fedsens.crypto.residues import HEADER, seal_header
from fedsens.crypto.seal import seal_context
from fedsens.errors import KeyFileError

ZSTD = 2  # SEAL's number of the compression that it uses by default
# Parameter identifier, coefficients, scale; then the array's own header and its count.
MEMBERS = struct.Struct("<4QQd")
COUNT = struct.Struct("<Q")
WINDOW = 2**20  # the most memory that a stream may make zstd keep; SEAL's need 32 KiB


def secret_stream(secret: bytes, parameters: CkksParameters) -> tuple[bytes, bytes]:
    """The uncompressed stream of a secret key, from which SEAL loads it.

    Args:
        secret: what SEAL saved.
        parameters: its parameter set.

    Returns:
        The stream, in parts.

    Raises:
        KeyFileError: the bytes are no secret key of these parameters.
    """
    before = _before(parameters)
    size = len(before) + 8 * DEGREE
    body = _expand(secret, size)
    words = np.frombuffer(body[len(before) :], "<u8") if len(body) == size else None
    if words is None or body[: len(before)] != before or int(words.max()) >= parameters.modulus:
        raise KeyFileError(
            f"expected a secret key of {DEGREE} coefficients below q for the preset "
            f"{parameters.name}, got other bytes; restore a copy"
        )
    return seal_header(size), body


def _before(parameters: CkksParameters) -> bytes:
    identifier = seal_context(parameters).key_parms_id()
    array = seal_header(COUNT.size + 8 * DEGREE) + COUNT.pack(DEGREE)
    return MEMBERS.pack(*identifier, DEGREE, 1.0) + array


def _expand(secret: bytes, most: int) -> bytes:
    """At most one byte more than ``most``, whatever the stream claims; nothing if it is broken."""
    if secret[: HEADER.size] != seal_header(len(secret) - HEADER.size, ZSTD):
        return b""
    decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW)
    try:
        with decompressor.stream_reader(memoryview(secret)[HEADER.size :]) as reader:
            return reader.read(most + 1)
    except zstandard.ZstdError:
        return b""
