"""The canonical bytes of a mask.

Little-endian, without padding between the fields::

    magic    6 bytes   "FSMASK"
    version  uint16    1
    P        uint64    coordinates
    k        uint64    selected coordinates
    layout   32 bytes  SHA-256 of the layout
    bits     (P+7)//8  one bit per coordinate, most significant first, unused bits zero
    checksum 32 bytes  SHA-256 of everything before it, which is also the mask's digest

A mask has exactly one encoding, so two masks are equal when their bytes are.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsens.errors import MaskError

MAGIC = b"FSMASK"
MASK_VERSION = 1
MASK_HEADER = struct.Struct("<6sHQQ32s")
CHECKSUM_BYTES = hashlib.sha256().digest_size


def pack(selected: NDArray[np.bool_], layout_digest: str) -> bytes:
    """Header and bits of a mask, without its checksum."""
    k = int(np.count_nonzero(selected))
    header = MASK_HEADER.pack(MAGIC, MASK_VERSION, selected.size, k, bytes.fromhex(layout_digest))
    return header + np.packbits(selected).tobytes()


def unpack(data: bytes) -> tuple[NDArray[np.bool_], str]:
    """Decode :func:`pack` followed by its checksum, from a source that need not be trusted.

    Memory stays below about eight times the length of ``data``, whatever size it claims.

    Raises:
        MaskError: the bytes are truncated, too long, damaged, not canonical, or not a mask.
    """
    size, k, layout_digest = _read_header(data)
    body = memoryview(data)[:-CHECKSUM_BYTES]
    if hashlib.sha256(body).digest() != data[-CHECKSUM_BYTES:]:
        raise MaskError("the mask's checksum does not match: it was damaged; send it again")
    bits = np.unpackbits(np.frombuffer(body[MASK_HEADER.size :], np.uint8))
    if bits[size:].any():
        raise MaskError("expected zero padding after the mask's last bit, got ones; send it again")
    selected = bits[:size].view(np.bool_)
    _check_count(selected, k)
    return selected, layout_digest


def _read_header(data: bytes) -> tuple[int, int, str]:
    if len(data) < MASK_HEADER.size + CHECKSUM_BYTES:
        raise MaskError(
            f"expected a mask of at least {MASK_HEADER.size + CHECKSUM_BYTES} bytes, got "
            f"{len(data)}; send it again"
        )
    magic, version, size, k, layout = MASK_HEADER.unpack_from(data)
    if magic != MAGIC:
        raise MaskError("expected the bytes of a mask, got something else; check what was sent")
    if version != MASK_VERSION:
        raise MaskError(
            f"expected mask format {MASK_VERSION}, got {version}; install the same fedsens on both "
            "sides"
        )
    length = MASK_HEADER.size + (size + 7) // 8 + CHECKSUM_BYTES
    if len(data) != length:
        raise MaskError(
            f"expected {length} bytes for a mask of {size} coordinates, got {len(data)}; "
            "send it again"
        )
    return size, k, layout.hex()


def _check_count(selected: NDArray[Any], k: int) -> None:
    count = int(np.count_nonzero(selected))
    if count != k:
        raise MaskError(f"expected {k} selected coordinates, got {count}; send the mask again")
