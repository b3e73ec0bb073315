"""What other federated learning systems encrypt with, cut into the same steps to be timed.

FedML's code and Plato encrypt with TenSEAL's ``CKKSVector`` under TenSEAL's tutorial parameters and
a public key; NVFlare drops one prime and encrypts symmetrically. The FedML-HE paper (arXiv
2303.10837) has 4096 values a ciphertext, multiplicative depth 1 and a scale of 52 bits in PALISADE;
the same in TenSEAL is three primes. All serialise every vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import tenseal
import tenseal.sealapi as sealapi
from numpy.typing import NDArray

from fedsens.bench._codec import CodecRow, PresetCodec, measure_codecs, preset_codec
from fedsens.crypto import PRESETS

FEDML = "FedML CKKSVector [60,40,40,60]"
NVFLARE = "NVFlare CKKSVector [60,40,40]"
PAPER = "Paper CKKSVector [60,52,60], 2^52"
COMPARED = ("encrypt", "add", "decrypt", "path")
LEVELS = {
    128: sealapi.SEC_LEVEL_TYPE.TC128,
    192: sealapi.SEC_LEVEL_TYPE.TC192,
    256: sealapi.SEC_LEVEL_TYPE.TC256,
}


class VectorCodec:
    """TenSEAL's ``CKKSVector``: N/2 values a ciphertext, N = 8192."""

    DEGREE = 8192
    value_range = 4.0  # to compare at the same full range as fedsens's presets

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
            for bits, level in LEVELS.items()
            if sum(modulus_bits) <= sealapi.CoeffModulus.MaxBitCount(self.DEGREE, level)
        )

    def encrypt(self, values: NDArray[np.float64]) -> list[bytes]:
        """One serialised vector per N/2 values."""
        step = self.DEGREE // 2
        parts = (values[low : low + step].tolist() for low in range(0, len(values), step))
        return [tenseal.ckks_vector(self._context, part).serialize() for part in parts]

    def start(self) -> list[Any]:
        """No vectors."""
        return []

    def add(self, total: list[Any], upload: list[bytes]) -> None:
        """Load each vector and add it in place."""
        if not total:
            total.extend(map(self._load, upload))
            return
        for vector, data in zip(total, upload, strict=True):
            vector.add_(self._load(data))

    def finish(self, total: list[Any]) -> list[bytes]:
        """Serialise the sums."""
        return [vector.serialize() for vector in total]

    def decrypt(self, download: list[bytes]) -> NDArray[np.float64]:
        """Bytes to values."""
        return np.concatenate([np.array(self._load(data).decrypt()) for data in download])

    def size(self, message: list[bytes]) -> int:
        """Number of bytes."""
        return sum(map(len, message))

    def _load(self, data: bytes) -> Any:
        return tenseal.ckks_vector_from(self._context, data)


def compare_codecs(
    values: int = 2**20, clients: int = 10, repeats: int = 3, vector_values: int = 2**17
) -> list[CodecRow]:
    """Measure FedML's, NVFlare's and the paper's use of CKKS beside fedsens's presets.

    Args:
        values: how many values a preset encrypts.
        clients: how many clients' vectors are averaged, for the errors.
        repeats: number of rounds, of which the median counts.
        vector_values: how many values the others encrypt, at most ``values``; they are slower.

    Returns:
        One row a codec, FedML's first.
    """
    few = min(values, vector_values)
    codecs: dict[str, tuple[VectorCodec | PresetCodec, int]] = {
        FEDML: (VectorCodec((60, 40, 40, 60), symmetric=False), few),
        NVFLARE: (VectorCodec((60, 40, 40), symmetric=True), few),
        PAPER: (VectorCodec((60, 52, 60), symmetric=False, scale_bits=52), few),
        **{name: (preset_codec(name), values) for name in PRESETS},
    }
    return measure_codecs(codecs, clients, repeats)


def content_of(rows: Sequence[CodecRow]) -> list[dict[str, Any]]:
    """The rows for a JSON file, each with its figures as multiples of the first, FedML's."""
    return [asdict(row) | {"times FedML": times_fedml(row, rows[0])} for row in rows]


def times_fedml(row: CodecRow, fedml: CodecRow) -> dict[str, float]:
    """How many times faster or smaller than FedML's a codec is, by figure."""
    faster = {step: getattr(row, step) / getattr(fedml, step) for step in COMPARED}
    smaller = {s: getattr(fedml, s) / getattr(row, s) for s in ("bytes_up", "bytes_down")}
    return faster | smaller
