"""CkksParameters: the public parameter set of the codec, with its stated errors.

There is one set of lattice parameters. Presets differ only in the wire modulus p to which residues
modulo q are rounded before they are sent, that is in bytes and precision. Aggregation only adds, so
one prime is enough: no rescaling, no relinearisation keys and no Galois keys exist. A ciphertext of
ring degree N holds N real values: two per complex slot, N/2 slots (CKKS: Cheon, Kim, Kim and Song
2017).
"""

from __future__ import annotations

import hashlib
import math
from typing import ClassVar, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedsens._options import Options
from fedsens.errors import ConfigurationError

DEGREE = 4096
# The smallest prime above 2^54 that is 1 modulo 2N, as the transform needs. SEAL refuses to encode
# a coefficient above half the power of two below the modulus: just above 2^54 that is all of q / 2,
# just below it would be only q / 4.
MODULUS = 2**54 + 24577
# Largest log2(q) at N = 4096 for a ternary or error-distributed secret and 256 bits of classical
# security (Homomorphic Encryption Standard 2018, table 1). Rounding on the wire is a public
# function of the ciphertext and can only add to it.
SECURITY_BITS, MOST_MODULUS_BITS = 256, 58

TAIL = 7.0  # standard deviations that must fit; exceeded with probability 2.6e-12 per coordinate
LARGEST_ERROR = 21  # of SEAL's centred binomial error (k = 21)
NOISE = LARGEST_ERROR / 2  # its variance
ROUNDING = 1 / 12  # variance of rounding a coefficient to an integer

Opens = Literal["clients", "server"]  #: who opens a sum
#: Names of the presets, by the bytes of an encrypted value: 2, 3, 4 and 7.
PresetName = Literal["tiny", "compact", "precise", "exact"]


class Preset(NamedTuple):
    """What a preset's name stands for: bytes a value, the wire modulus p and the default R."""

    bytes: int
    modulus: int
    value_range: float


# Every p is the largest prime below a power of 256, so that a residue always fits its bytes: one
# just above would cost a rare residue, and so its whole block, a byte more. "exact" does not round.
#: Every preset by its name.
PRESETS: dict[str, Preset] = {
    "tiny": Preset(2, 2**16 - 15, 4.0),
    "compact": Preset(3, 2**24 - 3, 4.0),
    "precise": Preset(4, 2**32 - 5, 4.0),
    "exact": Preset(7, MODULUS, 64.0),
}


class CkksParameters(Options):
    """Public CKKS parameters that every client and the server agree on.

    Attributes:
        name: the preset that fixes the bytes a value takes on the wire: ``tiny`` (2), ``compact``
            (3), ``precise`` (4) or ``exact`` (7).
        value_range: R. The root mean square of every block of N = 4096 values, and so any single
            value, may be at most R; the same holds for a sum of ciphertexts, which is why clients
            scale their values by weights that add up to at most one. A larger R costs precision
            in proportion (see :meth:`error_rms`).
        phase_seed: public seed of the unit phases that flatten a block's spectrum.
    """

    _called: ClassVar = "the CKKS parameters"

    name: PresetName = "precise"
    value_range: float = Field(ge=2.0**-20, le=2.0**20, allow_inf_nan=False)
    phase_seed: int = Field(default=0, ge=0, lt=2**32)

    @classmethod
    def preset(cls, name: str = "precise", value_range: float | None = None) -> Self:
        """The parameter set of a preset.

        Args:
            name: ``tiny``, ``compact``, ``precise`` or ``exact``.
            value_range: R; the preset's own (4, for ``exact`` 64) when None.

        Returns:
            The parameters.

        Raises:
            ConfigurationError: there is no such preset, or no such range.
        """
        if name not in PRESETS:
            raise ConfigurationError(
                f"expected a preset among {', '.join(PRESETS)}, got {name!r}; choose one of them"
            )
        wanted = PRESETS[name].value_range if value_range is None else value_range
        return cls.model_validate({"name": name, "value_range": wanted})

    @property
    def degree(self) -> int:
        """N, the ring degree, which is also the number of real values per ciphertext."""
        return DEGREE

    @property
    def modulus(self) -> int:
        """q, the prime modulus under which values are encrypted."""
        return MODULUS

    @property
    def wire_modulus(self) -> int:
        """p, the prime modulus of the residues on the wire."""
        return PRESETS[self.name].modulus

    @property
    def wire_bytes(self) -> int:
        """Bytes per residue on the wire."""
        return PRESETS[self.name].bytes

    @property
    def security_bits(self) -> int:
        """Classical security level by the Homomorphic Encryption Standard (2018), in bits."""
        return SECURITY_BITS

    @property
    def bytes_per_parameter(self) -> float:
        """Bytes per value of an upload of full blocks."""
        return float(self.wire_bytes)

    @property
    def bytes_per_parameter_down(self) -> float:
        """Bytes per value of a sum of full blocks: the same, as secrets replace its other half."""
        return float(self.wire_bytes)

    def blocks(self, values: int) -> int:
        """How many ciphertexts of N values hold so many values."""
        return -(-values // DEGREE)

    @property
    def gain(self) -> float:
        """Factor from a value to the units of the polynomial's coefficients.

        Flattened coefficients of a block with root mean square R are Gaussian with standard
        deviation gain * R * sqrt(2 / N); :data:`TAIL` of these reach q / 2.
        """
        return 2.0 ** (MODULUS.bit_length() - 2) / (
            TAIL * self.value_range * math.sqrt(2 / self.degree)
        )

    def error_rms(self, clients: int = 1) -> float:
        """Root mean square of decrypt(sum of encrypt(x_i)) - sum of x_i over the coordinates.

        Three independent errors of every upload add up in each coefficient: RLWE's (variance
        21/2), the rounding to multiples of q / p (its square over 12: of a uniform number, so
        subtractive dither, unbiased and independent of the values), and the encoder's rounding to
        whole coefficients. Only the last may be the same for clients whose values are the same.
        The transform spreads them evenly over the N values of a block. Its own float64 rounding,
        at most 4 epsilon R, counts only where nothing is rounded to p.

        Args:
            clients: how many ciphertexts were added.

        Returns:
            The error, in the units of the values.
        """
        return math.hypot(self._noise(clients), self._float64)

    def error_bound(self, clients: int = 1) -> float:
        """Bound on |decrypt(sum of encrypt(x_i)) - sum of x_i| for every coordinate.

        It is :data:`TAIL` standard deviations of the errors that :meth:`error_rms` lists, which
        are Gaussian to a good approximation as sums over N coefficients, plus the float64 rounding
        of the transform as if a block's were all in one coordinate.

        Args:
            clients: how many ciphertexts were added.

        Returns:
            The bound, in the units of the values.
        """
        return TAIL * self._noise(clients) + self._float64 * math.sqrt(self.degree)

    def _noise(self, clients: int) -> float:
        """Standard deviation of the noise of each coordinate."""
        step = MODULUS / self.wire_modulus
        wire = 0.0 if step == 1 else step**2 * ROUNDING
        variance = clients * (NOISE + wire) + clients**2 * ROUNDING + ROUNDING
        return math.sqrt(variance * self.degree / 2) / self.gain

    @property
    def _float64(self) -> float:
        """Bound of the root mean square of the transform's rounding in a block."""
        return 4 * float(np.finfo(np.float64).eps) * self.value_range

    @property
    def digest(self) -> bytes:
        """16 bytes that are equal exactly for equal parameters."""
        text = (
            f"fedsens ckks 3|{self.degree}|{self.modulus}|{self.wire_modulus}|{self.gain!r}"
            f"|{self.phase_seed}"
        )
        return hashlib.sha256(text.encode()).digest()[:16]

    def phases(self) -> NDArray[np.complex128]:
        """The N/2 public unit phases that every block is multiplied by, slot by slot.

        Without them a constant or one-hot block would put all its energy into one coefficient.
        """
        stream = hashlib.shake_256(f"fedsens phases 1|{self.phase_seed}".encode())
        words = np.frombuffer(stream.digest(4 * (self.degree // 2)), dtype="<u4")
        return np.exp(2j * np.pi * words / 2.0**32)


# Sensitivities span many orders of magnitude and are sent once, so maps are not rounded.
#: The codec that sensitivity maps are encrypted with.
MAP_PARAMETERS = CkksParameters.preset("exact", value_range=1024.0)
