"""A ciphertext between SEAL's stream and its wire form: the residues modulo q, and nothing else.

SEAL writes every residue as eight bytes and compresses the lot. The wire form keeps as many bytes
of each residue as q has and, of a fresh ciphertext, the seed that its second polynomial expands
from. That is smaller, loads faster, and leaves no part of another party's bytes for SEAL's parser
to interpret: the stream that SEAL reads is built here, around numbers that it checks against q.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Form:
    """How SEAL writes one kind of ciphertext; made once for many blocks by :func:`form_of`.

    Attributes:
        before: what stands before the residues, SEAL's header first.
        after: what stands between the residues and the seed; empty where there is no seed.
        count: number of residues.
        seed: bytes of the seed, 0 where there is none.
        widths: bytes per residue that a block may have.
    """

    before: bytes
    after: bytes
    count: int
    seed: int
    widths: tuple[int, ...]

    def shrink(self, stream: bytes) -> bytes:
        """The wire form of a ciphertext that SEAL has saved.

        Args:
            stream: what SEAL wrote, decompressed, without its first header.

        Returns:
            The seed, if there is one, and the residues.

        Raises:
            CryptoError: this version of SEAL writes another form than this module knows.
        """
        start = len(self.before) - HEADER.size
        stop = start + 8 * self.count
        end = stop + len(self.after)
        if stream[:start] != self.before[HEADER.size :] or stream[stop:end] != self.after:
            raise CryptoError(
                "expected SEAL to write ciphertexts in the form of version 4, got another; "
                "install the tenseal version that fedsens names"
            )
        words = np.frombuffer(stream[start:stop], "<u8")  # a copy, which is aligned
        width = self.widths[0]
        if len(self.widths) > 1 and int(np.maximum.reduce(words)) >> 8 * width:
            width = self.widths[1]
        parts = [(words >> shift if shift else words).astype(kind) for shift, kind in PLANES[width]]
        return b"".join((stream[end:], *(part.data for part in parts)))

    def expand(self, block: bytes | memoryview) -> tuple[bytes | memoryview, ...]:
        """The stream, uncompressed, from which SEAL loads a ciphertext.

        Args:
            block: the wire form.

        Returns:
            The stream, in parts. SEAL refuses it if a residue is not below q.

        Raises:
            CiphertextError: the block has an impossible size.
        """
        width, rest = divmod(len(block) - self.seed, self.count)
        if rest or width not in self.widths:
            raise CiphertextError(
                f"expected {self.widths} bytes for each of {self.count} residues, got a "
                f"ciphertext of {len(block)} bytes"
            )
        (_, kind), *others = PLANES[width]
        words = np.frombuffer(block, kind, self.count, self.seed).astype("<u8")
        for shift, kind in others:
            part = np.frombuffer(block, kind, self.count, self.seed + self.count * shift // 8)
            words |= part.astype("<u8") << np.uint64(shift)
        return self.before, words.data, self.after, block[: self.seed]


@lru_cache(maxsize=8)
def form_of(parameters: CkksParameters, fresh: bool) -> Form:
    """The form of ciphertexts under a parameter set.

    Args:
        parameters: the set.
        fresh: whether they hold a seed instead of their second polynomial.

    Returns:
        The form.
    """
    seed, count = (SEED, DEGREE) if fresh else (0, 2 * DEGREE)
    identifier = seal_context(parameters).first_parms_id()
    members = MEMBERS.pack(*identifier, True, 2, DEGREE, 1, 1.0, 1)
    array = seal_header(COUNT.size + 8 * count) + COUNT.pack(count)
    after = seal_header(INFO.size + SEED) + INFO.pack(BLAKE2XB) if fresh else b""
    size = len(members) + len(array) + 8 * count + len(after) + seed
    return Form(seal_header(size) + members + array, after, count, seed, parameters.residue_widths)


def seal_header(size: int, compression: int = UNCOMPRESSED) -> bytes:
    """SEAL's header of an object.

    Args:
        size: bytes that follow it.
        compression: SEAL's number of how these are compressed.

    Returns:
        The header.
    """
    own = sealapi.Serialization.SEALHeader()
    version = (own.version_major, own.version_minor)
    return HEADER.pack(own.magic, HEADER.size, *version, compression, HEADER.size + size)
