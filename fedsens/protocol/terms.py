"""RemainderTerms: what the server asks clients to do with the plaintext remainder."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedsens.errors import DowngradeError
from fedsens.files import Arrays
from fedsens.mask import EncryptionMask
from fedsens.protocol.budget import Spent, cost_of
from fedsens.protocol.remainder import Distribution, Plain, add_noise, add_noise_of, clip_update

Remainder = Literal["plain", "noised", "withheld"]  # from least protection to most
Lineage = Annotated[str, Field(pattern="^([0-9a-f]{32})?$")]

PROTECTION: Final = {name: rank for rank, name in enumerate(get_args(Remainder))}
MOST: Final = 1e6  # a scale beyond it leaves nothing of the update
LEAST: Final = 1e-6  # one below it protects nothing, and its budget is no number any more


class RemainderTerms(BaseModel):
    """Part of the header of every model that is sent.

    Attributes:
        remainder: ``plain`` sends it as it is, ``noised`` with noise, ``withheld`` not at all.
        noise: distribution of the noise.
        scale: standard deviation of the noise, relative to the root mean square of the visible
            update, or with ``clip`` to that norm.
        clip: norm that the visible update is clipped to, l2 for Gaussian noise and l1 for Laplace
            noise; 0 does not clip.
        lineage: random name of the run, which a resumed run inherits: by it a client finds what it
            kept in the earlier one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    remainder: Remainder = "plain"
    noise: Distribution = "gaussian"
    scale: float = Field(default=1.0, ge=0, le=MOST, allow_inf_nan=False)
    clip: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    lineage: Lineage = ""

    @model_validator(mode="after")
    def _kept_under_a_name(self) -> Self:
        if self.remainder != "plain" and not self.lineage:
            raise ValueError("a lineage is needed unless the remainder is plain")
        return self

    def noised(self, before: Plain, after: Plain, rng: np.random.Generator) -> Arrays:
        """Clip the visible update and add noise, as these terms say.

        Args:
            before: the remainder that was received.
            after: the remainder that was trained.
            rng: source of the noise.

        Returns:
            The remainder to send.
        """
        if self.clip:
            clipped = clip_update(before, after, self.clip, self.noise)
            return add_noise_of(clipped, self.noise, self.scale * self.clip, rng)
        return add_noise(before, after, self.noise, self.scale, rng)

    def cost(self, answers: int = 1) -> Spent | None:
        """The privacy that answers under these terms cost.

        Args:
            answers: how many.

        Returns:
            The cost, None where no budget can be stated: without noise to speak of, or with noise
            that depends on the data because the update is not clipped.
        """
        if self.remainder != "noised" or not self.clip or self.scale < LEAST:
            return None
        return cost_of(self.noise, self.scale, answers)


def check_terms(
    terms: RemainderTerms, mask: EncryptionMask, least: Remainder, min_noise: float
) -> None:
    """Refuse terms that protect less than a data owner demands.

    Args:
        terms: what the server asks for.
        mask: what the answer will be split by.
        least: the least protection of the remainder.
        min_noise: the smallest scale of noise, where noise is demanded and offered. Clipped to a
            norm, an update has a root mean square below that norm, so that the scale never means
            less than without clipping.

    Raises:
        DowngradeError: they protect less, or speak of a remainder where nothing is encrypted.
    """
    if terms.remainder != "plain" and not mask.k:
        raise DowngradeError(
            f"expected a mask, because the remainder is to be {terms.remainder}, got an empty one"
        )
    if least == "noised" and mask.k and mask.k == mask.size:
        return  # nothing is left that noise could be added to
    if PROTECTION[terms.remainder] < PROTECTION[least]:
        raise DowngradeError(
            f"expected a plaintext remainder that is at least {least} (fedsens-remainder), got a "
            f"request for {terms.remainder}; set the server's fedsens.remainder to {least!r}"
        )
    if least == terms.remainder == "noised" and terms.scale < min_noise:
        raise DowngradeError(
            f"expected noise of a scale of at least {min_noise:g} (fedsens-min-noise), got "
            f"{terms.scale:g}; raise the server's fedsens.noise-scale"
        )
