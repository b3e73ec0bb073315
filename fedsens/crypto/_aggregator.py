"""Aggregator: the server's half. It adds ciphertexts in NumPy and has no way to decrypt them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsens.crypto._parameters import CkksParameters
from fedsens.crypto._wire import (
    CHUNK,
    FRESH,
    MAX_CONTRIBUTIONS,
    PLANES,
    SUM,
    Batch,
    Words,
    parse_batch,
    to_wire,
    write_batch,
)
from fedsens.errors import CiphertextError


class Aggregator:
    """Adds ciphertext batches one by one; memory does not depend on how many.

    Built from public parameters only. It keeps the sum of the residues, twice as many bytes a value
    as travel, and beside it nothing but the batch that is being added. Adding is all or nothing: a
    batch that is damaged, of another number of values (CiphertextError) or under other parameters
    (KeyMismatchError) leaves the sum as it was.
    """

    def __init__(self, parameters: CkksParameters, values: int | None = None) -> None:
        """Start an empty sum.

        Args:
            parameters: the public parameters of all batches to come.
            values: how many values each must hold; the first batch decides when None.
        """
        self.parameters = parameters
        self._values = values
        # Each plane is added up by itself, in numbers of twice its width, so that residues are put
        # together once for a sum and not for every batch.
        self._planes = PLANES[parameters.wire_bytes]
        self._sums: dict[int, NDArray[Any]] = {}
        self._contributions = 0
        # This many residues below p fit into 64 bits, and this many digits into a plane's sums.
        rooms = [np.iinfo(kind).max + 2 for _, kind in self._planes]
        self._room = min((2**64 - 1) // (parameters.wire_modulus - 1), *rooms)
        self._unreduced = 0

    @property
    def contributions(self) -> int:
        """How many fresh ciphertexts have been added."""
        return self._contributions

    def add(self, data: bytes, fresh: bool = False) -> None:
        """Add one batch.

        Args:
            data: a serialised batch.
            fresh: refuse a batch that is itself a sum, as a client's must not be.
        """
        batch = parse_batch(data, self.parameters)
        self._check(batch, fresh)
        for shift, kind in self._planes if not self._sums else ():
            double = f"u{2 * np.dtype(kind).itemsize}"
            self._sums[shift] = np.zeros((batch.blocks, self.parameters.degree), double)
        if self._unreduced == self._room:
            self._reduce(batch.blocks)
        for low in range(0, batch.blocks, CHUNK):
            for shift, sums in self._sums.items():
                digits = batch.planes[str(shift)][low : low + CHUNK]
                sums[low : low + CHUNK] += digits.astype(sums.dtype)
        self._unreduced += 1
        self._values = batch.values
        self._contributions += batch.contributions

    def _reduce(self, blocks: int) -> None:
        """Bring the sums below p, which counts as one contribution."""
        for part, words in self._residues(blocks):
            for shift, kind in self._planes:
                self._sums[shift][part] = (words >> np.uint64(shift)).astype(kind)
        self._unreduced = 1

    def _residues(self, blocks: int) -> Iterator[tuple[slice, Words]]:
        """The sums modulo p, shape (blocks, N), in pieces that stay small."""
        for low in range(0, blocks, CHUNK):
            part = slice(low, low + CHUNK)
            total = np.zeros((min(CHUNK, blocks - low), self.parameters.degree), np.uint64)
            for shift, sums in self._sums.items():
                total += sums[part].astype(np.uint64) << np.uint64(shift)
            yield part, total % np.uint64(self.parameters.wire_modulus)

    def _check(self, batch: Batch, fresh: bool) -> None:
        if self._values is not None and batch.values != self._values:
            raise CiphertextError(
                f"expected a batch of {self._values} values, got {batch.values}; "
                "clients must use the same mask"
            )
        if self._contributions + batch.contributions > MAX_CONTRIBUTIONS:
            raise CiphertextError(
                f"expected at most {MAX_CONTRIBUTIONS} contributions in all, got a batch that "
                f"claims {batch.contributions}; it was not made by fedsens"
            )
        if fresh and batch.kind != FRESH:
            raise CiphertextError(
                "expected a fresh batch, got one that is a sum already; a client must send what it "
                "encrypted itself"
            )

    def result(self) -> bytes:
        """The serialised sum of all batches added so far.

        Returns:
            A batch: ``parameters.bytes_per_parameter_down`` bytes a value.

        Raises:
            CiphertextError: nothing was added yet.
        """
        if self._values is None:
            raise CiphertextError("expected at least one batch to sum, got none")
        residues = self._residues(self.parameters.blocks(self._values))
        pieces = (to_wire(words, self.parameters) for _, words in residues)
        return write_batch(self.parameters, SUM, self._values, self._contributions, pieces)

    def sum(self, batches: Iterable[bytes]) -> bytes:
        """The sum of these batches and of those added before.

        Args:
            batches: serialised batches.

        Returns:
            The serialised sum.
        """
        for batch in batches:
            self.add(batch)
        return self.result()
