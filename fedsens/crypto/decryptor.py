"""Decryptor: a key holder's half that opens ciphertext batches."""

from __future__ import annotations

import numpy as np
import tenseal.sealapi as sealapi
from numpy.typing import NDArray

from fedsens.crypto.aggregator import load_blocks
from fedsens.crypto.keys import SecretKey
from fedsens.crypto.packing import unpack
from fedsens.crypto.seal import seal_context
from fedsens.crypto.wire import parse_batch
from fedsens.errors import KeyMismatchError, ValueRangeError

# An honest sum at the very edge of the range may exceed it by the noise; a sum that wrapped
# around the modulus decodes to at least this much more than the range.
RANGE_MARGIN = 1.01


class Decryptor:
    """Decrypts batches that were encrypted under the same secret key."""

    def __init__(self, key: SecretKey) -> None:
        """Prepare SEAL's decryptor.

        Args:
            key: the secret key; its parameters are used.
        """
        self.parameters = key.parameters
        self._fingerprint = key.fingerprint
        self._context = seal_context(key.parameters)
        self._encoder = sealapi.CKKSEncoder(self._context)
        self._decryptor = sealapi.Decryptor(self._context, key.seal_key())

    def decrypt(self, data: bytes) -> NDArray[np.float64]:
        """Decrypt a batch: a client's values, or the sum of several clients'.

        A block outside the declared range is refused with ValueRangeError: the sum overflowed
        the modulus, or the ciphertext was not made with this key.

        Args:
            data: the serialised batch.

        Returns:
            1-D vector, within ``parameters.error_bound(summands)`` of the exact sum.

        Raises:
            KeyMismatchError: the batch was made with another key.
        """
        batch = parse_batch(data, self.parameters)
        if batch.fingerprint != self._fingerprint:
            raise KeyMismatchError(
                f"expected a batch under the key {self._fingerprint}, got {batch.fingerprint}; "
                "open it with the key it was made with"
            )
        slots = np.empty((len(batch.blocks), self.parameters.degree // 2), np.complex128)
        plaintext = sealapi.Plaintext()
        for row, ciphertext in zip(slots, load_blocks(batch, self.parameters), strict=True):
            self._decryptor.decrypt(ciphertext, plaintext)
            numbers = self._encoder.decode_complex(plaintext)  # see Encryptor.encrypt_blocks
            row[:] = np.fromiter(numbers, np.complex128)
        values = unpack(slots, self.parameters)
        self._check(values)
        return values[: batch.values]

    def _check(self, values: NDArray[np.float64]) -> None:
        blocks = values.reshape(-1, self.parameters.degree)
        rms = np.sqrt(np.einsum("ij,ij->i", blocks, blocks) / self.parameters.degree)
        limit = RANGE_MARGIN * self.parameters.value_range
        if not (rms <= limit).all():
            raise ValueRangeError(
                f"expected every block's root mean square within {self.parameters.value_range:g}, "
                f"got {int(np.sum(~(rms <= limit)))} blocks outside; the summed values left the "
                "range: scale by weights that add up to at most 1, or raise the value range"
            )
