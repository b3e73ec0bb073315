"""The wire format of a ciphertext batch: one header, residues modulo p, a checksum.

Everything is little-endian::

    magic "FSCT", version, kind (0 fresh, 1 sum), two zero bytes
    parameter digest (16)
    values (u64), blocks (u32), contributions (u32)
    blocks x N residues, in planes (see :data:`PLANES`)
    CRC-32 of the header and of the sums (u64) of each KiB of residues

Only the first polynomial of a ciphertext travels: the second is public (see
:mod:`fedsens.crypto._secret`). The checksum guards against damage, not against forgery: whatever
changes one word is seen, and other damage passes once in 2^32. A CRC of every byte would take the
server longer than adding. Reading and adding batches needs NumPy only.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsens.crypto._parameters import DEGREE, CkksParameters
from fedsens.errors import CiphertextError, KeyMismatchError

Words = NDArray[np.uint64]

MAGIC = b"FSCT"
BATCH_VERSION = 3
BATCH_HEADER = struct.Struct("<4sBBxx16sQII")
CHECKSUM = 4
SEGMENT = 128  # words in a KiB; every block is a whole number of these
FRESH, SUM = 0, 1
MAX_CONTRIBUTIONS = 2**32 - 1
CHUNK = 16  # blocks converted at a time: half a MiB of residues, which stay in the cache

# A block's residues travel in planes, low bytes first, so that whole arrays are converted.
PLANES: dict[int, tuple[tuple[int, str], ...]] = {  # bytes: (bits to shift, type) of each plane
    2: ((0, "<u2"),),
    3: ((0, "<u2"), (16, "u1")),
    4: ((0, "<u4"),),
    7: ((0, "<u4"), (32, "<u2"), (48, "u1")),
}
BLOCKS = {
    width: np.dtype([(str(shift), kind, DEGREE) for shift, kind in planes])
    for width, planes in PLANES.items()
}


@dataclass(frozen=True)
class Batch:
    """A vector of encrypted values whose bytes have been checked.

    Attributes:
        parameters: the parameter set.
        kind: ``FRESH`` (one client's) or ``SUM``.
        values: number of real values.
        contributions: number of fresh batches that were added up.
        planes: one record of planes per block, a view of the bytes.
    """

    parameters: CkksParameters
    kind: int
    values: int
    contributions: int
    planes: NDArray[np.void]

    @property
    def blocks(self) -> int:
        """Number of blocks of N values."""
        return len(self.planes)

    def residues(self, low: int = 0, high: int | None = None) -> Words:
        """A copy of the residues modulo p of blocks ``low`` up to ``high``, shape (blocks, N)."""
        # Three bytes are put together in 32 bits, which is half as much to move.
        kind = np.dtype("u4" if self.parameters.wire_bytes == 3 else "u8")
        (first, _), *others = PLANES[self.parameters.wire_bytes]
        part = self.planes[low:high]
        words: NDArray[Any] = part[str(first)].astype(kind)
        for shift, _ in others:
            words |= part[str(shift)].astype(kind) << kind.type(shift)
        return words.astype(np.uint64, copy=False)

    def chunks(self) -> Iterator[tuple[slice, Words]]:
        """The residues in pieces that stay small: the blocks they belong to, and they."""
        for low in range(0, self.blocks, CHUNK):
            yield slice(low, low + CHUNK), self.residues(low, low + CHUNK)


def residues(data: bytes, parameters: CkksParameters) -> Words:
    """The residues of a serialised batch, fresh or a sum, without TenSEAL.

    Args:
        data: the batch.
        parameters: the parameters that it must have been made with.

    Returns:
        Numbers below ``parameters.wire_modulus``, shape (blocks, N); the last block's padding is
        encrypted as well.
    """
    return parse_batch(data, parameters).residues()


def to_wire(words: Words, parameters: CkksParameters) -> bytes:
    """The wire form of residues below p, shape (blocks, N)."""
    planes = np.empty(len(words), BLOCKS[parameters.wire_bytes])
    for shift, _ in PLANES[parameters.wire_bytes]:
        # The assignment keeps the low bytes.
        planes[str(shift)] = words >> np.uint64(shift) if shift else words
    return planes.tobytes()


def write_batch(
    parameters: CkksParameters, kind: int, values: int, contributions: int, pieces: Iterable[bytes]
) -> bytes:
    """Serialise a batch whose blocks come in pieces, in order, without holding it twice."""
    blocks = parameters.blocks(values)
    header = BATCH_HEADER.pack(
        MAGIC, BATCH_VERSION, kind, parameters.digest, values, blocks, contributions
    )
    stream, checksum = io.BytesIO(), zlib.crc32(header)
    stream.write(header)
    for piece in pieces:
        checksum = zlib.crc32(_sums(piece), checksum)
        stream.write(piece)
    stream.write(checksum.to_bytes(CHECKSUM, "little"))
    return stream.getvalue()  # which copies nothing


def checksum(body: bytes | memoryview) -> bytes:
    """The checksum of a batch that is whole but for it; empty where the length cannot be right."""
    residues = body[BATCH_HEADER.size :]
    if len(residues) % (8 * SEGMENT):
        return b""
    head = zlib.crc32(body[: BATCH_HEADER.size])
    return zlib.crc32(_sums(residues), head).to_bytes(CHECKSUM, "little")


def _sums(residues: bytes | memoryview) -> bytes:
    """The sum of each KiB, modulo 2^64."""
    # Sums wrap around 2^64, so one changed word always changes the sum of its KiB.
    sums: Words = np.frombuffer(residues, "<u8").reshape(-1, SEGMENT).sum(axis=1)
    return sums.astype("<u8").tobytes()


def parse_batch(data: bytes, parameters: CkksParameters) -> Batch:
    """Check a serialised batch, down to the last residue.

    Args:
        data: the bytes.
        parameters: the parameters that the batch must have been made with.

    Returns:
        The batch; its blocks are a view of ``data``.

    Raises:
        CiphertextError: the bytes are not a whole, undamaged batch.
        KeyMismatchError: the batch was made with other parameters.
    """
    view = memoryview(data)
    if len(view) < BATCH_HEADER.size + CHECKSUM or view[:4] != MAGIC:
        raise CiphertextError(f"expected a ciphertext batch, got {len(view)} other bytes")
    _, version, kind, digest, values, blocks, contributions = BATCH_HEADER.unpack_from(view)
    if version != BATCH_VERSION:
        age = "an older" if version < BATCH_VERSION else "a newer"
        raise CiphertextError(
            f"expected a batch of version {BATCH_VERSION}, got version {version}, made by {age} "
            "version of fedsens; use the same one everywhere"
        )
    if view[-CHECKSUM:] != checksum(view[:-CHECKSUM]):
        raise CiphertextError("expected a matching checksum, got damaged bytes; send them again")
    if digest != parameters.digest:
        raise KeyMismatchError(
            f"expected a batch under the parameters {parameters!r}, got one under others; "
            "use one configuration for the server and all clients"
        )
    _check_counts(view, kind, values, blocks, contributions, parameters)
    planes = np.frombuffer(view, BLOCKS[parameters.wire_bytes], blocks, BATCH_HEADER.size)
    batch = Batch(parameters, kind, values, contributions, planes)
    _check_residues(batch)
    return batch


def _check_counts(
    view: memoryview,
    kind: int,
    values: int,
    blocks: int,
    contributions: int,
    parameters: CkksParameters,
) -> None:
    """Refuse a header whose numbers contradict each other or the length."""
    if kind not in {FRESH, SUM} or bytes(view[6:8]) != b"\0\0":
        raise CiphertextError(f"expected a fresh batch or a sum, got kind {kind}")
    if (
        blocks != parameters.blocks(values)
        or contributions < 1
        or (kind == FRESH and contributions != 1)
    ):
        raise CiphertextError(
            f"expected ceil(values / {parameters.degree}) blocks and one contribution, or more in "
            f"a sum, got {values} values, {blocks} blocks, {contributions} contributions"
        )
    size = BATCH_HEADER.size + blocks * BLOCKS[parameters.wire_bytes].itemsize + CHECKSUM
    if size != len(view):
        raise CiphertextError(f"expected a batch of {size} bytes, got {len(view)}")


def _check_residues(batch: Batch) -> None:
    """Refuse residues that are not below p: every residue has one form only."""
    # In pieces that stay in the cache, as everything that touches all residues.
    for low in range(0, batch.blocks, CHUNK):
        if _reach(batch.planes[low : low + CHUNK], batch.parameters):
            raise CiphertextError(
                f"expected residues below {batch.parameters.wire_modulus}, got a larger one; the "
                "batch was not made by fedsens"
            )


def _reach(blocks: NDArray[np.void], parameters: CkksParameters) -> bool:
    """Whether a residue of some blocks is p or more; only those with p's top digit are built."""
    modulus, planes = parameters.wire_modulus, PLANES[parameters.wire_bytes]
    top, _ = planes[-1]
    digits, limit = blocks[str(top)], modulus >> top
    if int(digits.max()) < limit:  # always so where p is just below 2^32
        return False
    # (blocks, N) -> flat -> (block, place): as fast again as nonzero in two dimensions.
    places = np.divmod(np.flatnonzero(digits >= limit), parameters.degree)
    words = np.zeros(len(places[0]), np.uint64)
    for shift, _ in planes:
        words |= blocks[str(shift)][places].astype(np.uint64) << np.uint64(shift)
    return bool((words >= modulus).any())
