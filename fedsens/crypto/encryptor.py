"""Encryptor: a client's values to a ciphertext batch, in this process or in several."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tenseal.sealapi as sealapi
from numpy.typing import NDArray

from fedsens.crypto.keys import SecretKey
from fedsens.crypto.packing import NameOf, check_range, pack
from fedsens.crypto.residues import form_of
from fedsens.crypto.seal import seal_context, seal_file
from fedsens.crypto.wire import FRESH, Batch
from fedsens.crypto.worker import encrypt_in_worker
from fedsens.errors import ConfigurationError, ValueRangeError

CHUNK = 4  # blocks packed at a time: 256 KiB of slots, which stay in the cache
WORKER_BLOCKS = 512  # a worker takes half a second to start; fewer blocks are not worth it


class Encryptor:
    """Encrypts vectors under the shared secret key, in SEAL's seeded symmetric form.

    The seeded form stores the second polynomial as a seed, which halves the upload.
    """

    def __init__(self, key: SecretKey, processes: int = 1) -> None:
        """Prepare SEAL's encryptor.

        Args:
            key: the secret key; its parameters are used.
            processes: how many processes may share the work on long vectors. SEAL holds the
                interpreter's lock, so threads would not help.

        Raises:
            ConfigurationError: ``processes`` is less than one.
        """
        if processes < 1:
            raise ConfigurationError(f"expected at least 1 process, got {processes}")
        self.parameters = key.parameters
        self._key = key
        self._processes = processes
        self._context = seal_context(key.parameters)
        self._encoder = sealapi.CKKSEncoder(self._context)
        self._encryptor = sealapi.Encryptor(self._context, key.seal_key())

    def encrypt(
        self, values: NDArray[np.floating], name_of: NameOf | None = None, scale: float = 1.0
    ) -> bytes:
        """Encrypt a vector.

        Args:
            values: 1-D float array of any length, an empty one included.
            name_of: maps an index to its parameter's name, used in errors only.
            scale: a factor for all values, in double precision and without a copy of the vector.

        Returns:
            A serialised batch: about ``parameters.bytes_per_parameter`` bytes a value.

        Raises:
            ValueRangeError: the input is not a vector of real numbers, or a value is NaN,
                infinite or beyond the range.
        """
        values = np.asarray(values)
        if values.ndim != 1 or values.dtype.kind != "f":
            raise ValueRangeError(
                f"expected a 1-D float vector, got {values.dtype} of shape {values.shape}"
            )
        check_range(values, self.parameters, name_of, scale)
        workers = min(self._processes, len(values) // (WORKER_BLOCKS * self.parameters.degree))
        if workers > 1:
            blocks = self._parallel(values, workers, scale)
        else:
            blocks = self.encrypt_blocks(values, scale)
        return Batch(
            FRESH, self.parameters.digest, self._key.fingerprint, len(values), 1, tuple(blocks)
        ).to_bytes()

    def encrypt_blocks(self, values: NDArray[np.floating], scale: float = 1.0) -> list[bytes]:
        """The SEAL ciphertexts of a vector that has been checked already.

        Args:
            values: 1-D float array.
            scale: a factor for all values.

        Returns:
            One serialised ciphertext per block of N values.

        Raises:
            ValueRangeError: the values of a block conspire with the phases to a coefficient
                beyond half the modulus, which no honest block does.
        """
        blocks: list[bytes] = []
        form = form_of(self.parameters, True)
        plaintext = sealapi.Plaintext()
        step = CHUNK * self.parameters.degree
        with seal_file() as file:
            for low in range(0, len(values), step):
                for slots in pack(values[low : low + step], self.parameters, scale):
                    # The name keeps the last list until the next one exists; otherwise Python
                    # gives its memory back to the system and faults it in again, every block.
                    numbers = slots.tolist()
                    try:
                        self._encoder.encode(numbers, 1.0, plaintext)
                    except ValueError:
                        raise ValueRangeError(
                            f"expected flattened coefficients within the modulus, got block "
                            f"{len(blocks)} beyond; choose another phase seed or a larger range"
                        ) from None
                    stream = file.stream(self._encryptor.encrypt_symmetric(plaintext))
                    blocks.append(form.shrink(stream))
        return blocks

    def _parallel(self, values: NDArray[np.floating], workers: int, scale: float) -> list[bytes]:
        degree = self.parameters.degree
        share = -(-len(values) // (workers * degree)) * degree
        parts = [values[low : low + share] for low in range(0, len(values), share)]
        with ThreadPoolExecutor(len(parts)) as pool:
            results = pool.map(lambda part: encrypt_in_worker(self._key, part, scale), parts)
            return [block for blocks in results for block in blocks]
