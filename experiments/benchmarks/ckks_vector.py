"""The codec and what other federated learning systems use, cut into the same steps to be timed.

FedML's code and Plato encrypt with TenSEAL's ``CKKSVector`` under TenSEAL's tutorial parameters and
a public key; NVFlare drops one prime and encrypts symmetrically. The FedML-HE paper (arXiv
2303.10837) has 4096 values a ciphertext, multiplicative depth 1 and a scale of 52 bits in PALISADE;
the same in TenSEAL is three primes. All serialise every vector.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import tenseal
import tenseal.sealapi as sealapi
from fedsens.crypto.aggregator import Aggregator, load_blocks
from fedsens.crypto.decryptor import Decryptor
from fedsens.crypto.encryptor import Encryptor
from fedsens.crypto.keys import generate_key
from fedsens.crypto.params import CkksParameters
from fedsens.crypto.seal import SECURITY, seal_context
from fedsens.crypto.wire import parse_batch
from numpy.typing import NDArray

Upload = TypeVar("Upload")


class Codec(Protocol[Upload]):
    """The steps of one round, each from and to what the next needs."""

    security_bits: int

    def encrypt(self, values: NDArray[np.float64]) -> Upload:
        """A client's values to the bytes it sends."""

    def load(self, upload: Upload) -> Iterator[Any]:
        """Bytes to ciphertexts in memory, one at a time."""

    def add(self, total: list[Any], other: Iterable[Any]) -> None:
        """Add ciphertexts to others in place."""

    def aggregate(self, uploads: Sequence[Upload]) -> Upload:
        """Load, add and serialise: all that the server does."""

    def decrypt(self, download: Upload) -> NDArray[np.float64]:
        """The bytes of a sum to its values."""

    def size(self, data: Upload) -> int:
        """Number of bytes."""


class PresetCodec:
    """This package's codec under a parameter set."""

    def __init__(self, parameters: CkksParameters) -> None:
        key = generate_key(parameters)
        self.security_bits = parameters.security_bits
        self._parameters = parameters
        self._evaluator = sealapi.Evaluator(seal_context(parameters))
        self.encrypt = Encryptor(key).encrypt
        self.decrypt = Decryptor(key).decrypt

    def load(self, upload: bytes) -> Iterator[Any]:
        """Bytes to ciphertexts, checked."""
        return load_blocks(parse_batch(upload, self._parameters), self._parameters)

    def add(self, total: list[Any], other: Iterable[Any]) -> None:
        """Add in place."""
        for left, right in zip(total, other, strict=True):
            self._evaluator.add_inplace(left, right)

    def aggregate(self, uploads: Sequence[bytes]) -> bytes:
        """The server's work."""
        return Aggregator(self._parameters).sum(list(uploads))

    def size(self, data: bytes) -> int:
        """Number of bytes."""
        return len(data)


class VectorCodec:
    """TenSEAL's ``CKKSVector``: N/2 values a ciphertext, N = 8192."""

    DEGREE = 8192

    def __init__(self, modulus_bits: Sequence[int], symmetric: bool, scale_bits: int = 40) -> None:
        kind = tenseal.ENCRYPTION_TYPE
        self._context = tenseal.context(
            tenseal.SCHEME_TYPE.CKKS,
            self.DEGREE,
            coeff_mod_bit_sizes=list(modulus_bits),
            encryption_type=kind.SYMMETRIC if symmetric else kind.ASYMMETRIC,
        )
        self._context.global_scale = 2.0**scale_bits
        self.security_bits = max(
            bits
            for bits, level in SECURITY.items()
            if sum(modulus_bits) <= sealapi.CoeffModulus.MaxBitCount(self.DEGREE, level)
        )

    def encrypt(self, values: NDArray[np.float64]) -> list[bytes]:
        """One serialised vector per N/2 values."""
        step = self.DEGREE // 2
        parts = (values[low : low + step].tolist() for low in range(0, len(values), step))
        return [tenseal.ckks_vector(self._context, part).serialize() for part in parts]

    def load(self, upload: list[bytes]) -> Iterator[Any]:
        """Bytes to vectors."""
        return (tenseal.ckks_vector_from(self._context, data) for data in upload)

    def add(self, total: list[Any], other: Iterable[Any]) -> None:
        """Add in place."""
        for left, right in zip(total, other, strict=True):
            left.add_(right)

    def aggregate(self, uploads: Sequence[list[bytes]]) -> list[bytes]:
        """The server's work."""
        total = list(self.load(uploads[0]))
        for upload in uploads[1:]:
            self.add(total, self.load(upload))
        return [vector.serialize() for vector in total]

    def decrypt(self, download: list[bytes]) -> NDArray[np.float64]:
        """Bytes to values."""
        return np.concatenate([np.array(vector.decrypt()) for vector in self.load(download)])

    def size(self, data: list[bytes]) -> int:
        """Number of bytes."""
        return sum(map(len, data))
