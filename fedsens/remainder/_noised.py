"""Noised: the remainder leaves with noise, and may be clipped before.

The remainder is what :func:`fedsens.mask.partition` leaves visible. Its update is the
difference between the remainder that was trained and the one that was received, over all visible
floating-point coordinates, running statistics included: whatever leaves in plaintext is treated
alike. Integer buffers are passed on as they are.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray

from fedsens._files import Arrays
from fedsens.errors import LayoutError
from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask, partition
from fedsens.remainder._account import DELTA, Account, PrivacyLoss, cost_of
from fedsens.remainder._terms import (
    Distribution,
    Leaving,
    RemainderPolicy,
    register_remainder,
)

logger = logging.getLogger(__name__)

#: A scale below it protects nothing, and its budget is no number any more.
LEAST_SCALE: Final = 1e-6
Visible = Mapping[str, NDArray[Any]]


@register_remainder
class Noised(RemainderPolicy):
    """Noise on every visible floating-point coordinate; the inner strategy averages the rest."""

    name: ClassVar = "noised"
    protection: ClassVar = 1
    has_noise: ClassVar = True

    def _weakness(self, min_noise: float) -> str | None:
        if self.terms.scale >= min_noise:
            return None
        return (
            f"expected noise of a scale of at least {min_noise:g} (fedsens-min-noise), got "
            f"{self.terms.scale:g}; raise the server's fedsens.noise-scale"
        )

    def protect(
        self,
        before: Arrays | None,
        after: Arrays,
        mask: EncryptionMask,
        layout: ParameterLayout,
        server_round: int,
        folder: Path,
        max_epsilon: float = math.inf,
    ) -> Leaving:
        """Split both models, clip the visible update and add noise; the account is kept."""
        received, _ = partition(self._received(before), mask, layout)
        plain, masked = partition(after, mask, layout)
        noisy = self.noised(received, plain, fresh_generator())
        return Leaving(noisy, masked, partial(self._account, server_round, folder, max_epsilon))

    def noised(self, before: Visible, after: Visible, rng: np.random.Generator) -> Arrays:
        """The remainder to send: the visible update clipped and noised, as the terms say."""
        terms = self.terms
        if terms.clip:
            clipped = clip_update(before, after, terms.clip, terms.noise)
            return add_noise_of(clipped, terms.noise, terms.scale * terms.clip, rng)
        return add_noise(before, after, terms.noise, terms.scale, rng)

    def cost(self, answers: int = 1) -> PrivacyLoss | None:
        """None without noise to speak of, or if it depends on the data for want of clipping."""
        if not self.terms.clip or self.terms.scale < LEAST_SCALE:
            return None
        return cost_of(self.terms.noise, self.terms.scale, answers)

    def describe(self) -> str:
        """The size of the noise."""
        terms = self.terms
        relative_to = (
            f"the clipping norm {terms.clip:g}"
            if terms.clip
            else "the visible update, so that no privacy budget can be stated"
        )
        return f"plaintext remainder: {terms.noise} noise of {terms.scale:g} times {relative_to}"

    def _account(self, server_round: int, folder: Path, max_epsilon: float) -> None:
        terms, cost = self.terms, self.cost()
        if cost is None:
            logger.info(
                "round %d remainder: %s noise of scale %g; no privacy budget, because %s",
                server_round,
                terms.noise,
                terms.scale,
                "there is next to no noise" if terms.clip else "the update is not clipped",
            )
            return
        spent = Account.of_client(folder).spend(cost, max_epsilon)
        logger.info(
            "round %d remainder: %s noise, epsilon %.4g, and %.4g for %d answers so far from this "
            "state folder (delta %g, plaintext remainder alone)",
            server_round,
            terms.noise,
            cost.epsilon(),
            spent.epsilon(),
            spent.answers,
            DELTA if spent.rho else 0,
        )


def fresh_generator() -> np.random.Generator:
    """A generator of noise that nobody else can seed; make one for each answer.

    Its 256-bit seed comes from the operating system's cryptographic source. The generator itself
    (PCG64DXSM) is a statistical one: its output is not proven unpredictable from earlier output.
    """
    return np.random.Generator(np.random.PCG64DXSM(secrets.randbits(256)))


def add_noise(
    before: Visible,
    after: Visible,
    distribution: Distribution,
    scale: float,
    rng: np.random.Generator,
) -> Arrays:
    """Noise in proportion to the visible update, independent for every coordinate.

    The standard deviation is ``scale`` times the root mean square of the update. It depends on the
    data, so no differential privacy budget can be stated; see :func:`add_noise_of` for one. Where
    nothing is visible, or nothing has changed, there is nothing to scale by and no noise.

    Args:
        before: the remainder that was received.
        after: the remainder that was trained.
        distribution: of the noise.
        scale: standard deviation relative to the update's root mean square; 0 changes nothing.
        rng: source of the noise; for real use :func:`fresh_generator`.

    Returns:
        The noisy remainder, in the types of ``after``.
    """
    return add_noise_of(after, distribution, scale * update_rms(before, after), rng)


def add_noise_of(
    after: Visible, distribution: Distribution, deviation: float, rng: np.random.Generator
) -> Arrays:
    """Noise of a standard deviation, on every visible floating-point coordinate, in its type."""
    if deviation == 0:
        return dict(after)

    def noisy(array: NDArray[Any]) -> NDArray[Any]:
        if distribution == "gaussian":
            noise = rng.normal(0.0, deviation, array.shape)
        else:  # the variance of Laplace(b) is 2 b^2
            noise = rng.laplace(0.0, deviation / math.sqrt(2), array.shape)
        return np.asarray(array + noise, array.dtype)

    return {name: noisy(array) if _floats(array) else array for name, array in after.items()}


def clip_update(before: Visible, after: Visible, norm: float, distribution: Distribution) -> Arrays:
    """Shorten the visible update to a norm: l2 for Gaussian noise, l1 for Laplace noise.

    It is before + (after - before) min(1, norm / |after - before|), in the types of ``after``.
    """
    length = update_norm(before, after, 2 if distribution == "gaussian" else 1)
    if length <= norm:
        return dict(after)
    factor = norm / length

    def shortened(name: str, array: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(before[name] + factor * _difference(before, after, name), array.dtype)

    return {n: shortened(n, array) if _floats(array) else array for n, array in after.items()}


def update_rms(before: Visible, after: Visible) -> float:
    """Root mean square over the visible floating-point coordinates; 0 where nothing is visible."""
    count = sum(array.size for array in after.values() if _floats(array))
    return update_norm(before, after, 2) / math.sqrt(count) if count else 0.0


def update_norm(before: Visible, after: Visible, order: Literal[1, 2]) -> float:
    """The l1 or l2 norm of the visible update, in float64."""
    names = [name for name, array in after.items() if _floats(array)]
    powers = [float((np.abs(_difference(before, after, name)) ** order).sum()) for name in names]
    total = math.fsum(powers)
    return total if order == 1 else math.sqrt(total)


def _difference(before: Visible, after: Visible, name: str) -> NDArray[np.float64]:
    if name not in before or before[name].shape != after[name].shape:
        raise LayoutError(f"{name}: expected the same shape before and after training, got others")
    return np.asarray(after[name].astype(np.float64) - before[name])


def _floats(array: NDArray[Any]) -> bool:
    return array.dtype.kind not in "biu"  # an unusual floating-point type must not stay as it is
