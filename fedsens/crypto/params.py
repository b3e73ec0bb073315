"""CkksParameters: the public parameter set of the codec, with its stated bounds.

Aggregation only adds, so one data prime is enough: no rescaling, no relinearisation keys and no
Galois keys exist. A ciphertext of ring degree N holds N real values: two per complex slot, N/2
slots (CKKS: Cheon, Kim, Kim and Song 2017).
"""

from __future__ import annotations

import hashlib
import math
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from fedsens.errors import ConfigurationError

DEGREE = 4096
TAIL = 7.0  # standard deviations that must fit; exceeded with probability 2.6e-12 per coordinate
NOISE = 21 / 2  # variance of SEAL's centred binomial error (k = 21)
ROUNDING = 1 / 12  # variance of rounding a coefficient to an integer

# Largest log2(q) per security level for a ternary secret (Homomorphic Encryption Standard 2018,
# table 1, classical attacks), strongest first.
HE_STANDARD = {4096: ((256, 58), (192, 75), (128, 109))}

# The smallest primes above 2^bits that are 1 modulo 2N, as the transform needs. SEAL refuses to
# encode a coefficient above half the power of two below the modulus: just above 2^bits that is
# all of q / 2, just below it would be only q / 4. The bytes stay those of 2^bits.
MODULI = {32: 2**32 + 24577, 36: 2**36 + 8193, 54: 2**54 + 24577}

# name: (modulus bits, value range)
PRESETS = {"compact": (32, 4.0), "balanced": (36, 16.0), "precise": (54, 64.0)}
PresetName = Literal["compact", "balanced", "precise"]


class CkksParameters(BaseModel):
    """Public CKKS parameters that every client and the server agree on.

    Attributes:
        name: the preset that fixes the modulus: ``compact`` (log2 q = 32), ``balanced`` (36) or
            ``precise`` (54).
        value_range: R. The root mean square of every block of N = 4096 values, and so any single
            value, may be at most R; the same holds for a sum of ciphertexts, which is why clients
            scale their values by weights that add up to at most one. A larger R costs precision
            in proportion (see :meth:`error_bound`).
        phase_seed: public seed of the unit phases that flatten a block's spectrum.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: PresetName = "compact"
    value_range: float = Field(ge=2.0**-20, le=2.0**20, allow_inf_nan=False)
    phase_seed: int = Field(default=0, ge=0, lt=2**32)

    @classmethod
    def preset(cls, name: str, value_range: float | None = None) -> Self:
        """The parameter set of a preset.

        Args:
            name: ``compact``, ``balanced`` or ``precise``.
            value_range: R; the preset's own (4, 16, 64) when None.

        Returns:
            The parameters.

        Raises:
            ConfigurationError: there is no such preset.
        """
        if name not in PRESETS:
            raise ConfigurationError(
                f"expected a preset among {', '.join(PRESETS)}, got {name!r}; choose one of them"
            )
        return cls.model_validate({
            "name": name,
            "value_range": PRESETS[name][1] if value_range is None else value_range,
        })

    @property
    def degree(self) -> int:
        """N, the ring degree, which is also the number of real values per ciphertext."""
        return DEGREE

    @property
    def modulus_bits(self) -> int:
        """log2 of q, to the nearest integer."""
        return PRESETS[self.name][0]

    @property
    def modulus(self) -> int:
        """q, the only prime of the coefficient modulus."""
        return MODULI[self.modulus_bits]

    @property
    def security_bits(self) -> int:
        """Classical security level by the Homomorphic Encryption Standard (2018), in bits."""
        return next(level for level, bits in HE_STANDARD[DEGREE] if self.modulus_bits <= bits)

    @property
    def residue_widths(self) -> tuple[int, ...]:
        """Bytes per residue that a block may have, the usual one first.

        Where q is just above a power of 256, a rare block holds a residue that needs one more.
        """
        usual = -(-self.modulus_bits // 8)
        return (usual, usual + 1) if self.modulus > 2 ** (8 * usual) else (usual,)

    @property
    def bytes_per_parameter(self) -> float:
        """Expected bytes per value of an upload (a fresh, seeded ciphertext), full blocks."""
        return self._bytes(self.degree) + 65 / self.degree  # the seed, and the block's width

    @property
    def bytes_per_parameter_down(self) -> float:
        """Expected bytes per value of a download (a sum of ciphertexts), full blocks."""
        return 2 * self._bytes(2 * self.degree) + 1 / self.degree

    def _bytes(self, residues: int) -> float:
        usual = self.residue_widths[0]
        small = min(1.0, 2.0 ** (8 * usual) / self.modulus)
        return usual + 1 - small**residues

    @property
    def gain(self) -> float:
        """Factor from a value to the units of the polynomial's coefficients.

        Flattened coefficients of a block with root mean square R are Gaussian with standard
        deviation gain * R * sqrt(2 / N); :data:`TAIL` of these reach q / 2.
        """
        return 2.0 ** (self.modulus_bits - 1) / (
            TAIL * self.value_range * math.sqrt(2 / self.degree)
        )

    def error_bound(self, clients: int = 1) -> float:
        """Bound on |decrypt(sum of encrypt(x_i)) - sum of x_i| for every coordinate.

        It is :data:`TAIL` standard deviations of the noise of ``clients`` fresh ciphertexts, whose
        errors are independent but whose rounding is the same where their values are, plus the
        float64 rounding of the transform.

        Args:
            clients: how many ciphertexts were added.

        Returns:
            The bound, in the units of the values.
        """
        noise, rounding = self._errors(clients)
        return TAIL * noise + rounding

    def error_norm(self, values: int, clients: int, bits: float) -> float:
        """Bound on the l2 norm of the error of a whole decrypted vector.

        The error is Gaussian to a good approximation, with the standard deviation s of
        :meth:`error_bound` in every coordinate. Its norm is then beyond s (sqrt(n) + x) with
        probability at most exp(-x^2 / 2) (concentration of a 1-Lipschitz function).

        Args:
            values: n, the number of values.
            clients: how many ciphertexts were added.
            bits: the bound is exceeded with probability at most 2^-bits.

        Returns:
            The bound, in the units of the values.
        """
        noise, rounding = self._errors(clients)
        excess = math.sqrt(2 * math.log(2) * bits)
        return noise * (math.sqrt(values) + excess) + rounding * math.sqrt(values)

    def _errors(self, clients: int) -> tuple[float, float]:
        """Standard deviation of the noise, and bound of the rounding, of each coordinate."""
        variance = clients * NOISE + clients**2 * ROUNDING
        noise = math.sqrt(variance * self.degree / 2) / self.gain
        rounding = 4 * float(np.finfo(np.float64).eps) * self.value_range * math.sqrt(self.degree)
        return noise, rounding

    @property
    def digest(self) -> bytes:
        """16 bytes that are equal exactly for equal parameters."""
        text = f"fedsens ckks 1|{self.degree}|{self.modulus}|{self.gain!r}|{self.phase_seed}"
        return hashlib.sha256(text.encode()).digest()[:16]

    def phases(self) -> NDArray[np.complex128]:
        """The N/2 public unit phases that every block is multiplied by, slot by slot.

        Without them a constant or one-hot block would put all its energy into one coefficient.
        """
        stream = hashlib.shake_256(f"fedsens phases 1|{self.phase_seed}".encode())
        words = np.frombuffer(stream.digest(4 * (self.degree // 2)), dtype="<u4")
        return np.exp(2j * np.pi * words / 2.0**32)


# Sensitivities span many orders of magnitude and are sent once, so maps use the widest modulus.
MAP_PARAMETERS = CkksParameters.preset("precise", value_range=1024.0)
