"""A ciphertext between SEAL's stream and its wire form: the residues modulo q, and nothing else.

SEAL writes every residue as eight bytes and compresses the lot. The wire form keeps as many bytes
of each residue as q has and, of a fresh ciphertext, the seed that its second polynomial expands
from. That is smaller, loads faster, and leaves no part of another party's bytes for SEAL's parser
to interpret: the stream that SEAL reads is built here, around numbers that it checks against q.
"""

from __future__ import annotations

import struct
from functools import lru_cache

import numpy as np
import tenseal.sealapi as sealapi

from fedsens.crypto.params import DEGREE, CkksParameters
from fedsens.crypto.seal import seal_context
from fedsens.errors import CiphertextError, CryptoError

SEED = 64
BLAKE2XB = 1  # SEAL's number of the generator that the seed is for
UNCOMPRESSED = 0
# Everything is little-endian. SEAL's header: magic, its size, version, compression, size.
HEADER = struct.Struct("<HBBBBxxQ")
# Parameter identifier, transformed, polynomials, N, primes, scale, BGV's correction factor.
MEMBERS = struct.Struct("<4Q?QQQdQ")
COUNT = struct.Struct("<Q")
INFO = struct.Struct("<B")
# A residue's bytes travel in planes, low ones first, so that whole arrays are converted.
PLANES: dict[int, tuple[tuple[int, str], ...]] = {  # width: (bits to shift, type) of each plane
    4: ((0, "<u4"),),
    5: ((0, "<u4"), (32, "u1")),
    6: ((0, "<u4"), (32, "<u2")),
    7: ((0, "<u4"), (32, "<u2"), (48, "u1")),
}


def block_size(width: int, fresh: bool) -> int:
    """Bytes of a ciphertext on the wire.

    Args:
        width: bytes per residue.
        fresh: whether the second polynomial is a seed.

    Returns:
        The size.
    """
    return SEED + DEGREE * width if fresh else 2 * DEGREE * width


def shrink(stream: bytes, fresh: bool, parameters: CkksParameters) -> bytes:
    """The wire form of a ciphertext that SEAL has saved.

    Args:
        stream: what SEAL wrote, decompressed, without its first header.
        fresh: whether it was saved with a seed.
        parameters: its parameters.

    Returns:
        The seed, if fresh, and the residues.

    Raises:
        CryptoError: this version of SEAL writes another form than this module knows.
    """
    before, after = _frame(parameters, fresh)
    prefix, count = before[HEADER.size :], _residues(fresh)
    stop = len(prefix) + 8 * count
    if not stream.startswith(prefix) or stream[stop : stop + len(after)] != after:
        raise CryptoError(
            "expected SEAL to write ciphertexts in the form of version 4, got another; "
            "install the tenseal version that fedsens names"
        )
    words = np.frombuffer(stream[len(prefix) : stop], "<u8")  # a copy, which is aligned
    largest = int(words.max())
    planes = PLANES[next(w for w in parameters.residue_widths if largest >> 8 * w == 0)]
    parts = [(words >> shift if shift else words).astype(kind) for shift, kind in planes]
    return b"".join((stream[stop + len(after) :], *(part.data for part in parts)))


def expand(
    block: bytes | memoryview, fresh: bool, parameters: CkksParameters
) -> tuple[bytes | memoryview, ...]:
    """The stream, uncompressed, from which SEAL loads a ciphertext.

    Args:
        block: the wire form.
        fresh: whether it holds a seed.
        parameters: its parameters.

    Returns:
        The stream, in parts. SEAL refuses it if a residue is not below q.

    Raises:
        CiphertextError: the block has an impossible size.
    """
    count, start = _residues(fresh), SEED if fresh else 0
    width, rest = divmod(len(block) - start, count)
    if rest or width not in parameters.residue_widths:
        raise CiphertextError(
            f"expected {parameters.residue_widths} bytes for each of {count} residues, got a "
            f"ciphertext of {len(block)} bytes"
        )
    (_, kind), *others = PLANES[width]
    words = np.frombuffer(block, kind, count, start).astype("<u8")
    for shift, kind in others:
        part = np.frombuffer(block, kind, count, start + count * shift // 8)
        words |= part.astype("<u8") << np.uint64(shift)
    before, after = _frame(parameters, fresh)
    return before, words.data, after, block[:start]


def _residues(fresh: bool) -> int:
    return DEGREE if fresh else 2 * DEGREE


@lru_cache(maxsize=8)
def _frame(parameters: CkksParameters, fresh: bool) -> tuple[bytes, bytes]:
    """What SEAL writes before the residues, and between them and the seed."""
    count = _residues(fresh)
    identifier = seal_context(parameters).first_parms_id()
    members = MEMBERS.pack(*identifier, True, 2, DEGREE, 1, 1.0, 1)
    array = _header(COUNT.size + 8 * count) + COUNT.pack(count)
    after = _header(INFO.size + SEED) + INFO.pack(BLAKE2XB) if fresh else b""
    size = len(members) + len(array) + 8 * count + len(after) + (SEED if fresh else 0)
    return _header(size) + members + array, after


def _header(size: int) -> bytes:
    own = sealapi.Serialization.SEALHeader()
    version = (own.version_major, own.version_minor)
    return HEADER.pack(own.magic, HEADER.size, *version, UNCOMPRESSED, HEADER.size + size)
