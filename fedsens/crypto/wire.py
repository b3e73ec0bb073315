"""The wire format of a ciphertext batch: one header, the ciphertexts, a checksum.

Everything is little-endian::

    magic "FSCT", version, kind (0 fresh, 1 sum), two zero bytes
    parameter digest (16), key fingerprint (16)
    values (u64), blocks (u32), summands (u32)
    blocks x length of the ciphertext (u32)
    the ciphertexts as SEAL serialises them
    BLAKE2b-128 of all of the above

SEAL notices truncation but not every flipped bit, hence the checksum. It guards against damage,
not against forgery: that is what TLS and node authentication are for.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from itertools import accumulate, pairwise

from fedsens.crypto.params import CkksParameters
from fedsens.errors import CiphertextError, KeyMismatchError

MAGIC = b"FSCT"
VERSION = 1
HEADER = struct.Struct("<4sBBxx16s16sQII")
CHECKSUM = 16
FRESH, SUM = 0, 1
MAX_SUMMANDS = 2**32 - 1
# SEAL's header starts each ciphertext: magic, header size, version, zstd (2), reserved, size.
SEAL_HEADER = struct.Struct("<HBBBBHQ")
SEAL_MAGIC, SEAL_ZSTD = 0xA15E, 2


@dataclass(frozen=True)
class Batch:
    """A vector of encrypted values: the ciphertext of every block and what they belong to.

    Attributes:
        kind: ``FRESH`` (seeded, one client) or ``SUM``.
        parameters: digest of the CKKS parameters (16 bytes).
        fingerprint: of the key, hexadecimal.
        values: number of real values.
        summands: number of fresh ciphertexts that were added up.
        blocks: the SEAL ciphertexts.
    """

    kind: int
    parameters: bytes
    fingerprint: str
    values: int
    summands: int
    blocks: tuple[bytes | memoryview, ...]

    def to_bytes(self) -> bytes:
        """Serialise, with the checksum."""
        header = HEADER.pack(
            MAGIC,
            VERSION,
            self.kind,
            self.parameters,
            bytes.fromhex(self.fingerprint),
            self.values,
            len(self.blocks),
            self.summands,
        )
        lengths = struct.pack(f"<{len(self.blocks)}I", *map(len, self.blocks))
        pieces = (header, lengths, *self.blocks)
        return b"".join((*pieces, _checksum(*pieces)))


def parse_batch(data: bytes, parameters: CkksParameters) -> Batch:
    """Check and cut a serialised batch, without touching SEAL.

    Args:
        data: the bytes.
        parameters: the parameters that the batch must have been made with.

    Returns:
        The batch; its blocks are views into ``data``.

    Raises:
        CiphertextError: the bytes are not a whole, undamaged batch.
        KeyMismatchError: the batch was made with other parameters.
    """
    view = memoryview(data)
    if len(view) < HEADER.size + CHECKSUM or view[:4] != MAGIC:
        raise CiphertextError(f"expected a ciphertext batch, got {len(view)} other bytes")
    _, version, kind, digest, fingerprint, values, blocks, summands = HEADER.unpack_from(view)
    if version != VERSION or kind not in {FRESH, SUM} or bytes(view[6:8]) != b"\0\0":
        raise CiphertextError(
            f"expected a batch of version {VERSION}, got version {version}, kind {kind}; "
            "use the same fedsens version everywhere"
        )
    if _checksum(view[:-CHECKSUM]) != view[-CHECKSUM:]:
        raise CiphertextError("expected a matching checksum, got damaged bytes; send them again")
    if digest != parameters.digest:
        raise KeyMismatchError(
            f"expected a batch under the parameters {parameters!r}, got one under others; "
            "use one configuration for the server and all clients"
        )
    if (
        blocks != -(-values // parameters.degree)
        or summands < 1
        or (kind == FRESH) > (summands == 1)
    ):
        raise CiphertextError(
            f"expected ceil(values / {parameters.degree}) blocks and at least one summand, got "
            f"{values} values, {blocks} blocks, {summands} summands"
        )
    return Batch(kind, digest, fingerprint.hex(), values, summands, _cut(view, blocks))


def _cut(view: memoryview, blocks: int) -> tuple[memoryview, ...]:
    start = HEADER.size + 4 * blocks
    if start > len(view) - CHECKSUM:
        raise CiphertextError(f"expected {blocks} ciphertexts, got a truncated list")
    lengths = struct.unpack_from(f"<{blocks}I", view, HEADER.size)
    offsets = list(accumulate(lengths, initial=start))
    if offsets[-1] != len(view) - CHECKSUM:
        raise CiphertextError(
            f"expected ciphertexts of {sum(lengths)} bytes, got {len(view) - CHECKSUM - start}"
        )
    pieces = tuple(view[a:b] for a, b in pairwise(offsets))
    for piece in pieces:
        _check_seal_header(piece)
    return pieces


def _check_seal_header(piece: memoryview) -> None:
    if len(piece) < SEAL_HEADER.size:
        raise CiphertextError(f"expected a SEAL ciphertext, got {len(piece)} bytes")
    magic, size, _, _, compression, _, total = SEAL_HEADER.unpack_from(piece)
    if (magic, size, compression, total) != (
        SEAL_MAGIC,
        SEAL_HEADER.size,
        SEAL_ZSTD,
        len(piece),
    ):
        raise CiphertextError("expected a zstd-compressed SEAL ciphertext, got another header")


def _checksum(*pieces: bytes | memoryview) -> bytes:
    digest = hashlib.blake2b(digest_size=CHECKSUM)
    for piece in pieces:
        digest.update(piece)
    return digest.digest()
