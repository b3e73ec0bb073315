"""Central differential privacy without a trusted server: every client adds a share of the noise.

Each client clips its whole update to an L2 norm C and adds Gaussian noise of variance
(z C)^2 / s before it encrypts, s being the fewest clients of a sum. All weigh alike, so a mean of
n >= s of them is

    model + 1/n (sum of clipped updates + noise of standard deviation z C sqrt(n / s)),

the Gaussian mechanism of noise multiplier z sqrt(n / s) on a sum of sensitivity C, where
neighbours differ in one client's update being there or not (McMahan et al. 2018, "Learning
differentially private recurrent language models"; the shares as in Kairouz, Liu and Steinke 2021,
"The distributed discrete Gaussian mechanism", with rounded continuous noise). Where one client's
data are replaced by others, the multiplier counts half. A client knows its own noise: against c
clients that collude with whoever opens, it is z sqrt((n - c) / s).

The figures hold for real arithmetic (Mironov 2012), for parameters, and not for what else an
answer says: metrics and numbers of examples.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from functools import lru_cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedsens._files import Arrays
from fedsens._imports import require
from fedsens._options import Options
from fedsens.errors import ValueRangeError
from fedsens.remainder._account import DELTA, PrivacyLoss, cost_of
from fedsens.remainder._noised import update_norm

STEPS = 4  # of the type between neighbouring numbers; with fewer, rounding can hide the noise
CHUNK = 2**20  # values whose noise is made at once
LITTLE_NOISE = 1e4  # sum of 1 / multiplier^2, from which on a simple bound is close enough
DISCRETIZATION = 1e-4  # of the privacy loss, where epsilon is of the order of one


class CentralPrivacy(Options):
    """What every client of a round does to its update, part of every header and context.

    Attributes:
        clip: C, the L2 norm of the whole update.
        noise: z, the noise multiplier of a sum of ``shares`` clients.
        shares: s, the fewest clients of a sum; with fewer it is void.
    """

    _called: ClassVar = "the terms of central privacy"

    clip: float = Field(gt=0, allow_inf_nan=False)
    noise: float = Field(ge=1e-100, le=1e6, allow_inf_nan=False)  # whose square is a number
    shares: int = Field(ge=1)

    @property
    def deviation(self) -> float:
        """Standard deviation of one client's noise."""
        return self.noise * self.clip / math.sqrt(self.shares)

    def multiplier(self, contributors: int) -> float:
        """The noise multiplier of a sum of so many clients."""
        return self.noise * math.sqrt(contributors / self.shares)

    def cost(self, contributors: int) -> PrivacyLoss:
        """What a sum of so many clients costs one that is in it or not, as zCDP."""
        return PrivacyLoss(answers=1, rho=self.multiplier(contributors) ** -2 / 2)

    def cost_to_client(self, contributors: int) -> PrivacyLoss:
        """What it costs one that is in it, whatever its data: two updates differ by 2 C."""
        return cost_of("gaussian", self.multiplier(contributors))

    def protect(self, before: Arrays, after: Arrays) -> Arrays:
        """Clip an update and add this client's share of the noise.

        Args:
            before: the model that was received.
            after: the model that was trained, of the same layout and finite.

        Returns:
            The model to encrypt, in the types of ``after``; integer buffers are those received.

        Raises:
            ValueRangeError: a type is too coarse for the noise, which would round away.
        """  # noqa: DOC502 - raised by _check_types
        self._check_types(before, after)
        length = update_norm(before, after, 2)
        factor = 1.0 if length <= self.clip else self.clip / length
        return {name: self._value(before[name], array, factor) for name, array in after.items()}

    def _check_types(self, before: Arrays, after: Arrays) -> None:
        """Refuse values so large that their type would round the noise away, or the update."""
        coarse = [
            name
            for name, array in after.items()
            if array.size
            and array.dtype.kind == "f"
            and STEPS * _step(before[name], array) > self.deviation
        ]
        if coarse:
            raise ValueRangeError(
                f"expected noise of at least {STEPS} steps of the parameters' type, got a standard "
                f"deviation of {self.deviation:.3g}, which rounds away in {', '.join(coarse)}; "
                "train in float32 or wider, and keep large buffers out of the state dict"
            )

    def _value(
        self, before: NDArray[np.generic], after: NDArray[np.generic], factor: float
    ) -> NDArray[np.generic]:
        if after.dtype.kind in "biu":
            return np.asarray(before, after.dtype)
        start = np.asarray(before, np.float64)
        moved = start + factor * (np.asarray(after, np.float64) - start)
        noise = self.deviation * gaussian(after.size)
        return np.asarray(moved + noise.reshape(after.shape), after.dtype)


def _step(before: NDArray[np.generic], after: NDArray[np.generic]) -> float:
    """The distance of neighbouring numbers of a type where an update's values are largest."""
    largest = max(float(np.abs(each).max()) for each in (before, after))
    return float(np.spacing(after.dtype.type(largest)))


def gaussian(count: int) -> NDArray[np.float64]:
    """Standard normal numbers from the operating system's cryptographic source (Box-Muller)."""
    numbers = np.empty(count)
    for low in range(0, count, CHUNK):
        part = numbers[low : low + CHUNK]
        half = -(-len(part) // 2)
        words = np.frombuffer(os.urandom(16 * half), "<u8") >> np.uint64(11)
        uniform = (words + 0.5) * 2.0**-53  # never 0
        radius, angle = np.sqrt(-2 * np.log(uniform[:half])), 2 * np.pi * uniform[half:]
        both = np.concatenate((radius * np.cos(angle), radius * np.sin(angle)))
        part[:] = both[: len(part)]
    return numbers


def epsilon_of(multipliers: Iterable[float], delta: float = DELTA) -> float:
    """What several releases cost together whoever took part in all of them.

    No amplification by sampling is claimed, since whoever opens knows the sampled clients.

    Args:
        multipliers: noise multiplier of each release.
        delta: between 0 and 1.

    Returns:
        Epsilon, by the accountant of Google's dp-accounting, or with next to no noise the bound of
        zero-concentrated privacy. That package missing is a ConfigurationError with the line that
        installs it.
    """
    # Gaussian mechanisms compose to one of this multiplier (Dong, Roth and Su 2022, Corollary 3.3).
    precision = math.fsum(multiplier**-2 for multiplier in multipliers)
    require("dp_accounting.pld")
    if not precision:
        return 0.0
    if precision > LITTLE_NOISE:
        return PrivacyLoss(rho=precision / 2).epsilon(delta)
    return _gaussian_epsilon(precision, delta)


@lru_cache(maxsize=64)  # a report asks again where nothing was added, and it takes half a second
def _gaussian_epsilon(precision: float, delta: float) -> float:
    pld, events = require("dp_accounting.pld"), require("dp_accounting")
    interval = DISCRETIZATION * max(1.0, precision)
    accountant = pld.PLDAccountant(value_discretization_interval=interval)
    accountant.compose(events.GaussianDpEvent(precision**-0.5))
    return float(accountant.get_epsilon(delta))
