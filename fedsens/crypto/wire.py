"""The wire format of a ciphertext batch: one header, the ciphertexts, a checksum.

Everything is little-endian::

    magic "FSCT", version, kind (0 fresh, 1 sum), two zero bytes
    parameter digest (16), key fingerprint (16)
    values (u64), blocks (u32), summands (u32)
    blocks x bytes per residue (u8)
    the ciphertexts (see :mod:`fedsens.crypto.residues`)
    CRC-32 of all of the above

SEAL would not notice a flipped bit, hence the checksum. It guards against damage, not against
forgery: that is what TLS and node authentication are for.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from itertools import accumulate, pairwise

from fedsens.crypto.params import CkksParameters
from fedsens.crypto.residues import block_size
from fedsens.errors import CiphertextError, KeyMismatchError

MAGIC = b"FSCT"
VERSION = 1
HEADER = struct.Struct("<4sBBxx16s16sQII")
CHECKSUM = 4
FRESH, SUM = 0, 1
MAX_SUMMANDS = 2**32 - 1


@dataclass(frozen=True)
class Batch:
    """A vector of encrypted values: the ciphertext of every block and what they belong to.

    Attributes:
        kind: ``FRESH`` (seeded, one client) or ``SUM``.
        parameters: digest of the CKKS parameters (16 bytes).
        fingerprint: of the key, hexadecimal.
        values: number of real values.
        summands: number of fresh ciphertexts that were added up.
        blocks: the ciphertext of each block.
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
        one = block_size(1, self.kind == FRESH) - block_size(0, self.kind == FRESH)
        widths = bytes(len(block) // one for block in self.blocks)
        pieces = (header, widths, *self.blocks)
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
    pieces = _cut(view, blocks, kind == FRESH, parameters)
    return Batch(kind, digest, fingerprint.hex(), values, summands, pieces)


def _cut(
    view: memoryview, blocks: int, fresh: bool, parameters: CkksParameters
) -> tuple[memoryview, ...]:
    start, stop = HEADER.size + blocks, len(view) - CHECKSUM
    widths = bytes(view[HEADER.size : min(start, stop)])
    if len(widths) != blocks or not set(widths) <= set(parameters.residue_widths):
        raise CiphertextError(
            f"expected {blocks} ciphertexts of {parameters.residue_widths} bytes per residue, got "
            "another list"
        )
    offsets = list(accumulate((block_size(width, fresh) for width in widths), initial=start))
    if offsets[-1] != stop:
        raise CiphertextError(
            f"expected ciphertexts of {offsets[-1] - start} bytes, got {stop - start}"
        )
    return tuple(view[a:b] for a, b in pairwise(offsets))


def _checksum(*pieces: bytes | memoryview) -> bytes:
    value = 0
    for piece in pieces:
        value = zlib.crc32(piece, value)
    return value.to_bytes(CHECKSUM, "little")
