"""EncryptionMask: which coordinates of the flat parameter vector are encrypted.

Its canonical bytes are little-endian, without padding between the fields::

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
import re
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fedsens.errors import MaskError
from fedsens.layout import Entry
from fedsens.mask._partition import merge, separate


@dataclass(frozen=True, eq=False, repr=False)
class EncryptionMask:
    """An immutable choice of k among the P coordinates of a layout.

    The law of a mask is ``combine(*partition(x)) == x`` for every vector ``x`` of length P.
    Masks are equal when their digests are: same layout, same coordinates.

    Attributes:
        selected: read-only boolean vector of length P, true where a coordinate is encrypted.
        layout_digest: digest of the layout that the coordinates refer to.
    """

    selected: NDArray[np.bool_]
    layout_digest: str

    def __post_init__(self) -> None:
        selected = np.asarray(self.selected)
        if selected.dtype != np.bool_ or selected.ndim != 1:
            raise MaskError(
                f"expected a boolean vector, got {selected.dtype}{list(selected.shape)}; "
                "set the chosen coordinates of np.zeros(P, bool) to True"
            )
        if not re.fullmatch("[0-9a-f]{64}", self.layout_digest):
            raise MaskError("expected 64 hexadecimal characters; pass layout.digest")
        # A view of bytes cannot be made writeable again, unlike a copy with its flag cleared.
        frozen = np.frombuffer(selected.tobytes(), np.bool_)
        object.__setattr__(self, "selected", frozen)

    @property
    def size(self) -> int:
        """P, the number of coordinates."""
        return self.selected.size

    @cached_property
    def k(self) -> int:
        """Number of encrypted coordinates."""
        return int(np.count_nonzero(self.selected))

    @property
    def ratio(self) -> float:
        """Encrypted share k / P, in [0, 1]; 0 for an empty layout."""
        return self.k / self.size if self.size else 0.0

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) of the canonical bytes: equal exactly for equal masks."""
        return hashlib.sha256(_pack(self.selected, self.layout_digest)).hexdigest()

    def covers(self, other: EncryptionMask) -> bool:
        """Whether every coordinate that another mask of this layout encrypts is encrypted here."""
        return self.layout_digest == other.layout_digest and not bool(
            np.any(other.selected & ~self.selected)
        )

    def union(self, other: EncryptionMask) -> EncryptionMask:
        """What this mask or another one of the same layout encrypts."""
        return EncryptionMask(self.selected | other.selected, self.layout_digest)

    def overlap(self, other: EncryptionMask) -> float:
        """Intersection over union of the encrypted coordinates: 1 - staleness.

        Args:
            other: a mask of the same layout.

        Returns:
            From 0 to 1; 1 where both select the same coordinates.
        """
        either = int(np.count_nonzero(self.selected | other.selected))
        both = int(np.count_nonzero(self.selected & other.selected))
        return both / either if either else 1.0

    def partition(self, flat: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Split a vector into what is encrypted and what is sent in plaintext.

        Args:
            flat: vector of length P, of any type.

        Returns:
            The k masked values and the P - k visible ones, both in coordinate order. The second
            holds nothing at all, not even zeros, for the masked coordinates.

        Raises:
            MaskError: the vector has another length.
        """
        if flat.shape != (self.size,):
            raise MaskError(_wrong_length("values", flat, self.size))
        return separate(flat, self.selected)

    def combine(self, masked: NDArray[Any], rest: NDArray[Any]) -> NDArray[Any]:
        """Join the two parts of :meth:`partition` again.

        Args:
            masked: vector of length k.
            rest: vector of length P - k.

        Returns:
            Vector of length P, in the wider of the two types.

        Raises:
            MaskError: a part has another length.
        """
        if masked.shape != (self.k,):
            raise MaskError(_wrong_length("masked values", masked, self.k))
        if rest.shape != (self.size - self.k,):
            raise MaskError(_wrong_length("visible values", rest, self.size - self.k))
        return merge(self.selected, masked, rest, np.result_type(masked.dtype, rest.dtype))

    def of(self, entry: Entry) -> NDArray[np.bool_]:
        """The selection within one tensor.

        Args:
            entry: a floating-point tensor of the mask's layout.

        Returns:
            Read-only boolean array of the tensor's shape.

        Raises:
            MaskError: the tensor lies outside the mask.
        """
        if entry.slice.stop > self.size:
            raise MaskError(
                f"expected a tensor within {self.size} coordinates, got {entry.name}, which ends "
                f"at {entry.slice.stop}; use the layout that the mask was made for"
            )
        return self.selected[entry.slice].reshape(entry.shape)

    def to_bytes(self) -> bytes:
        """The mask's only encoding, (P + 7) // 8 + 88 bytes, checksum included."""
        return _pack(self.selected, self.layout_digest) + bytes.fromhex(self.digest)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Rebuild a mask from :meth:`to_bytes`.

        The checksum finds damage, not forgery: compare :attr:`layout_digest` and, where one was
        agreed on, :attr:`digest` before using a mask that came over the network.

        Args:
            data: the bytes; need not be trusted.

        Returns:
            The mask.
        """
        return cls(*_unpack(data))

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, EncryptionMask) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"EncryptionMask(k={self.k}, size={self.size}, digest={self.digest[:12]}...)"


def _wrong_length(what: str, values: NDArray[Any], length: int) -> str:
    return (
        f"expected a vector of {length} {what}, got shape {values.shape}; "
        "use the layout and the mask that were agreed on"
    )


MAGIC = b"FSMASK"
MASK_VERSION = 1
MASK_HEADER = struct.Struct("<6sHQQ32s")
CHECKSUM_BYTES = hashlib.sha256().digest_size


def _pack(selected: NDArray[np.bool_], layout_digest: str) -> bytes:
    """Header and bits of a mask, without its checksum."""
    k = int(np.count_nonzero(selected))
    header = MASK_HEADER.pack(MAGIC, MASK_VERSION, selected.size, k, bytes.fromhex(layout_digest))
    return header + np.packbits(selected).tobytes()


def _unpack(data: bytes) -> tuple[NDArray[np.bool_], str]:
    """Decode its bytes followed by its checksum, from a source that need not be trusted.

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
