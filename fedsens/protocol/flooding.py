"""Noise on decrypted values before they leave the key holders, against IND-CPA-D attacks.

CKKS decrypts to the values plus an error that depends on the key: who has ciphertexts and what they
decrypt to can solve for the key (Li and Micciancio, EUROCRYPT 2021). Gaussian noise that drowns the
error prevents it (Li, Micciancio, Schultz and Sorrell, CRYPTO 2022): for an error of at most t in
the l2 norm, q decryptions and s bits of statistical security, its standard deviation is ::

    sigma = sqrt(12 q) 2^(s / 2) t

Two decryptions that differ by t are then t^2 / (2 sigma^2) apart in the Kullback-Leibler
divergence, q of them 2^-s / 24. By Pinsker's inequality nobody tells them apart with an advantage
above 2^(-s / 2) / 6.9, whatever they compute; s counts bits as Micciancio and Walter (2018) do.

The bound holds for ciphertexts that were made as the protocol says, not for forged ones.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from fedsens.crypto import CkksParameters
from fedsens.crypto.wire import parse_batch
from fedsens.errors import ValueRangeError
from fedsens.protocol.model import ProtectedModel

MOST = 0.1  # noise that is accepted unasked, relative to the values' root mean square


class Flooding(BaseModel):
    """How much noise hides the decryption error.

    Attributes:
        security_bits: s, the statistical security.
        decryptions: q, how many decryptions under one key are ever released, all files counted.
        accept: add the noise even where it exceeds a tenth of the values' root mean square.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    security_bits: int = Field(default=30, ge=1, le=128)
    decryptions: int = Field(default=1, ge=1, le=2**32)
    accept: bool = False

    def deviation(self, parameters: CkksParameters, values: int, summands: int) -> float:
        """The noise's standard deviation (sigma above) for a decrypted sum.

        Args:
            parameters: of the ciphertext.
            values: number of values that are released.
            summands: number of ciphertexts that were added up.

        Returns:
            The standard deviation, in the units of the sum.
        """
        # The error exceeds its bound in any of q decryptions with probability 2^-(s+1).
        chance = self.security_bits + 1 + math.log2(self.decryptions)
        error = parameters.error_norm(values, summands, chance)
        return math.sqrt(12 * self.decryptions) * 2 ** (self.security_bits / 2) * error


@dataclass(frozen=True)
class Flooded:
    """Decrypted values with noise.

    Attributes:
        values: the values.
        deviation: standard deviation of the noise.
        share: the same relative to the root mean square of the values without it.
    """

    values: NDArray[np.float64]
    deviation: float
    share: float


def flood(values: NDArray[np.float64], model: ProtectedModel, flooding: Flooding) -> Flooded:
    """Add the noise to decrypted values.

    Args:
        values: what ``model.decrypt`` returned.
        model: the model.
        flooding: how much.

    Returns:
        The values with noise from the system's cryptographic source.

    Raises:
        ValueRangeError: the noise would exceed a tenth of the values' root mean square.
    """
    parameters = model.parameters
    listed, weight = _listed(model)
    claimed = parse_batch(model.ciphertext, parameters).summands if model.ciphertext else 0
    deviation = flooding.deviation(parameters, values.size, max(listed, claimed)) / weight
    size = math.sqrt(float(values @ values) / values.size)
    share = deviation / size if size else math.inf
    if share > MOST and not flooding.accept:
        raise ValueRangeError(
            f"expected noise of at most {MOST:g} of the decrypted values' root mean square, got "
            f"{share:.2g} for {flooding.security_bits} bits and {flooding.decryptions} decryptions "
            f"under the preset {parameters.name}; train with the preset precise or a smaller "
            "value range, ask for less, or accept the noise"
        )
    return Flooded(values + gaussian(values.size, deviation), deviation, share)


def _listed(model: ProtectedModel) -> tuple[int, float]:
    """How many were added with which weight, by the list that the tags agree with.

    The ciphertext's own count is not authenticated. After a key rotation it is a single one, but
    its values still hold the error of the sum, which depends on the key before.
    """
    if model.contributors is None:
        return 0, model.weight
    total = math.fsum(model.contributors.weights)
    return len(model.contributors.names), min(model.weight, total)


def gaussian(count: int, deviation: float) -> NDArray[np.float64]:
    """Normal deviates from the system's cryptographic source (Box and Muller 1958).

    Args:
        count: how many.
        deviation: their standard deviation.

    Returns:
        A vector; no value is beyond 8.6 standard deviations, since uniforms have 53 bits.
    """
    pairs = -(-count // 2)
    words = np.frombuffer(os.urandom(16 * pairs), np.uint64).reshape(2, pairs) >> np.uint64(11)
    radius = np.sqrt(-2 * np.log((words[0] + 1.0) / 2.0**53))
    angle = words[1] * (2 * math.pi / 2.0**53)
    both = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return np.asarray(deviation * both[:count])
