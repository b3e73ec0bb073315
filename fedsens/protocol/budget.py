"""What the noise on the plaintext remainder is worth as differential privacy.

The mechanism is local: two updates of a client, whatever data they come from, are both clipped to
a norm C and so differ by at most 2 C; noise of standard deviation ``scale`` x C is added to every
visible floating-point coordinate. Nothing else of an answer is covered: not the masked part, which
leaves encrypted and whose sum key holders see, not integer buffers, and not the metrics. The
figures hold for real arithmetic; floating-point samplers fall short of it (Mironov 2012).
"""

from __future__ import annotations

import math
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from fedsens.protocol.remainder import Distribution

DELTA: Final = 1e-5


class Spent(BaseModel):
    """Privacy that answers have cost so far; the sum of two is that of both.

    Attributes:
        answers: how many.
        rho: of the Gaussian ones, which compose by addition as zero-concentrated differential
            privacy (Bun and Steinke 2016, Lemma 2.3).
        pure: epsilon of the Laplace ones, which compose by addition.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    answers: int = Field(default=0, ge=0)
    rho: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    pure: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    def plus(self, other: Spent) -> Spent:
        """Both together."""
        return Spent(
            answers=self.answers + other.answers,
            rho=self.rho + other.rho,
            pure=self.pure + other.pure,
        )

    def epsilon(self, delta: float = DELTA) -> float:
        """Epsilon at a delta, which Laplace noise alone does not need.

        Args:
            delta: between 0 and 1.

        Returns:
            rho + 2 sqrt(rho ln(1 / delta)) (Bun and Steinke 2016, Proposition 1.3), plus ``pure``.
        """
        return self.rho + 2 * math.sqrt(self.rho * math.log(1 / delta)) + self.pure


def cost_of(distribution: Distribution, scale: float, answers: int = 1) -> Spent:
    """What answers with clipped and noised remainders cost.

    Gaussian noise of standard deviation s C under an l2 sensitivity of 2 C is
    (2 C)^2 / (2 (s C)^2) = 2 / s^2 zCDP (Bun and Steinke 2016, Proposition 1.6). Laplace noise of
    that standard deviation has b = s C / sqrt 2, and under an l1 sensitivity of 2 C it is
    2 C / b = 2 sqrt 2 / s differentially private.

    Args:
        distribution: of the noise.
        scale: s, the noise's standard deviation relative to the clipping norm; more than 0.
        answers: how many.

    Returns:
        Their cost.
    """
    if distribution == "gaussian":
        return Spent(answers=answers, rho=answers * 2 / scale**2)
    return Spent(answers=answers, pure=answers * 2 * math.sqrt(2) / scale)
