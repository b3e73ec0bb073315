"""Decryptor: from a sum of ciphertexts and the sum of their secrets to the sum of the values."""

from __future__ import annotations

from typing import overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fedsens.crypto._blocks import decrypt_blocks
from fedsens.crypto._encoding import Floats
from fedsens.crypto._parameters import CkksParameters
from fedsens.crypto._secret import OneTimeSecret, check_context
from fedsens.crypto._wire import parse_batch
from fedsens.errors import KeyMismatchError, ValueRangeError

# An honest sum at the very edge of the range may exceed it by the noise; a sum that wrapped around
# the modulus, and uniform garbage, decode to at least this much more than the range.
RANGE_MARGIN = 1.01


class Decryptor:
    """Opens batches that were encrypted in the same context."""

    def __init__(self, parameters: CkksParameters, context: bytes) -> None:
        """Decrypt in a context.

        Args:
            parameters: the public parameters.
            context: the bytes that the encrypting parties agreed on.
        """
        self.parameters = parameters
        self._context = check_context(context)

    @overload
    def decrypt(self, data: bytes, secret: OneTimeSecret) -> Floats: ...

    @overload
    def decrypt(
        self, data: bytes, secret: OneTimeSecret, dtype: DTypeLike
    ) -> NDArray[np.floating]: ...

    def decrypt(
        self, data: bytes, secret: OneTimeSecret, dtype: DTypeLike = np.float64
    ) -> NDArray[np.floating]:
        """Decrypt a batch: one client's values, or the sum of several clients'.

        Nothing is divided: sums go in, sums come out. Garbage, as another context, the secrets of
        other uploads and a missing one of them give, has four times the root mean square that the
        range allows and is refused. All blocks are decrypted before that is said, so that neither
        the text nor the time tells which were wrong.

        Args:
            data: the serialised batch.
            secret: the sum of the secrets of all uploads in it.
            dtype: of the result; float32 halves its memory.

        Returns:
            1-D vector, within ``parameters.error_bound(contributions)`` of the exact sum.

        Raises:
            KeyMismatchError: ``secret`` is the sum of another number of secrets.
            ValueRangeError: what was opened lies outside the declared range.
        """
        batch = parse_batch(data, self.parameters)
        if secret.contributions != batch.contributions:
            raise KeyMismatchError(
                f"expected the sum of {batch.contributions} secrets, got that of "
                f"{secret.contributions}; add the secrets of exactly those whose uploads were added"
            )
        values = np.empty(batch.values, dtype)
        low, within = 0, True
        for blocks in decrypt_blocks(batch, self._context, secret):
            within &= self._within(blocks)
            part = values[low : low + blocks.size]
            part[:] = blocks.reshape(-1)[: len(part)]
            low += blocks.size
        if not within:
            raise ValueRangeError(
                f"expected every block's root mean square within {self.parameters.value_range:g}, "
                "got values outside: either the context or the secrets are not those of this sum, "
                "or the summed values left the range; then scale by weights that add up to at most "
                "1, or raise the value range"
            )
        return values

    def _within(self, blocks: Floats) -> bool:
        limit = self.parameters.degree * (RANGE_MARGIN * self.parameters.value_range) ** 2
        return bool((np.einsum("ij,ij->i", blocks, blocks) <= limit).all())
