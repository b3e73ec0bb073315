"""Aggregator: the server's half. It adds ciphertexts in NumPy and has no way to decrypt them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from fedsens.crypto._parameters import CkksParameters
from fedsens.crypto._wire import (
    CHUNK,
    FRESH,
    MAX_SUMMANDS,
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

    Built from public parameters only. It keeps the sum of the residues modulo p, 8 bytes a value,
    and beside it nothing but the batch that is being added. Adding is all or nothing: a batch that
    is damaged, of another number of values (CiphertextError) or under other parameters
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
        self._sum: Words | None = None
        self._summands = 0
        # Residues are below p, so this many fit into 64 bits before they must be reduced.
        self._room = (2**64 - 1) // (parameters.wire_modulus - 1)
        self._unreduced = 0

    @property
    def summands(self) -> int:
        """How many fresh ciphertexts have been added."""
        return self._summands

    def add(self, data: bytes, fresh: bool = False) -> None:
        """Add one batch.

        Args:
            data: a serialised batch.
            fresh: refuse a batch that is itself a sum, as a client's must not be.
        """
        batch = parse_batch(data, self.parameters)
        self._check(batch, fresh)
        if self._sum is None:
            self._sum = np.zeros((batch.blocks, self.parameters.degree), np.uint64)
        if self._unreduced == self._room:
            self._reduce(self._sum)
        for part, words in batch.chunks():
            self._sum[part] += words
        self._unreduced += 1
        self._values = batch.values
        self._summands += batch.summands

    def _reduce(self, words: Words) -> None:
        """Bring the sums below p, which counts as one summand."""
        for low in range(0, len(words), CHUNK):
            words[low : low + CHUNK] %= np.uint64(self.parameters.wire_modulus)
        self._unreduced = 1

    def _check(self, batch: Batch, fresh: bool) -> None:
        if self._values is not None and batch.values != self._values:
            raise CiphertextError(
                f"expected a batch of {self._values} values, got {batch.values}; "
                "clients must use the same mask"
            )
        if self._summands + batch.summands > MAX_SUMMANDS:
            raise CiphertextError(
                f"expected at most {MAX_SUMMANDS} summands in all, got a batch that claims "
                f"{batch.summands}; it was not made by fedsens"
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
        if self._sum is None or self._values is None:
            raise CiphertextError("expected at least one batch to sum, got none")
        self._reduce(self._sum)
        pieces = self._pieces(self._sum)
        return write_batch(self.parameters, SUM, self._values, self._summands, pieces)

    def _pieces(self, words: Words) -> Iterator[bytes]:
        for low in range(0, len(words), CHUNK):
            yield to_wire(words[low : low + CHUNK], self.parameters)

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
