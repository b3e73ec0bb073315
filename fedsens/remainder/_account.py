"""What the noise on the plaintext remainder is worth as differential privacy, and what is spent.

The mechanism is local: two updates of a client, whatever data they come from, are both clipped to
a norm C and so differ by at most 2 C; noise of standard deviation ``scale`` x C is added to every
visible floating-point coordinate. Nothing else of an answer is covered: not the masked part, which
leaves encrypted and whose sum key holders see, not integer buffers, and not the metrics. The
figures hold for real arithmetic; floating-point samplers fall short of it (Mironov 2012).

The account is the client's own: one for its state folder, whatever runs, nodes and experiments the
server names, so that nobody else can begin it anew. Clients that share a state folder, as those of
a simulation do, share the account; then it is an upper bound for each. Means with the noise of
:mod:`fedsens.remainder._central` are in it, too. The server's account of a run with such noise is
another file of the same form, beside its checkpoints.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedsens._files import locked, read_checked, write_checked
from fedsens.errors import CheckpointError, DowngradeError

logger = logging.getLogger(__name__)

#: The delta of every (epsilon, delta) statement about Gaussian noise.
DELTA: Final = 1e-5
ACCOUNT_FILE: Final = "privacy.safetensors"


class PrivacyLoss(BaseModel):
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

    def plus(self, other: PrivacyLoss) -> PrivacyLoss:
        """Both together."""
        return PrivacyLoss(
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


def cost_of(
    distribution: Literal["gaussian", "laplace"], scale: float, answers: int = 1
) -> PrivacyLoss:
    """What answers with clipped and noised remainders cost, by the noise relative to the norm, s.

    Gaussian noise of standard deviation s C under an l2 sensitivity of 2 C is (2 C)^2 / (2 (s C)^2)
    = 2 / s^2 zCDP (Bun and Steinke 2016, Proposition 1.6). Laplace noise of that standard deviation
    has b = s C / sqrt 2, and under an l1 sensitivity of 2 C it is 2 C / b = 2 sqrt 2 / s
    differentially private.
    """
    if distribution == "gaussian":
        return PrivacyLoss(answers=answers, rho=answers * 2 / scale**2)
    return PrivacyLoss(answers=answers, pure=answers * 2 * math.sqrt(2) / scale)


class AccountHeader(BaseModel):
    """Header of the account's file, which has no tensors.

    Attributes:
        type: what the file is.
        spent: the privacy that answers have cost so far.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["fedsens privacy account"] = "fedsens privacy account"
    spent: PrivacyLoss


class Account:
    """The privacy that releases have cost, in a file; it only grows."""

    def __init__(self, folder: Path) -> None:
        """Find the account of a folder, which must exist."""
        self._path = folder / ACCOUNT_FILE

    @classmethod
    def of_client(cls, folder: Path) -> Account:
        """The account of the state folder above a client's folder in a run."""
        return cls(folder.parent.parent)

    def spent(self) -> PrivacyLoss:
        """The cost so far, zero if nothing was spent.

        Raises:
            CheckpointError: the file is damaged.
        """
        if not self._path.exists():
            return PrivacyLoss()
        kind = "fedsens privacy account"
        text, _ = read_checked(self._path, kind, CheckpointError)
        try:
            return AccountHeader.model_validate_json(text).spent
        except ValidationError:
            raise CheckpointError(
                f"expected a {kind} in {self._path}, got another file; restore a copy"
            ) from None

    def check(self, cost: PrivacyLoss, max_epsilon: float) -> PrivacyLoss:
        """Refuse a cost that exceeds a bound.

        Args:
            cost: of the next answer.
            max_epsilon: the largest epsilon of all answers together, at :data:`DELTA`.

        Returns:
            The cost of all answers, the next one included.

        Raises:
            DowngradeError: it is beyond the bound.
        """
        spent = self.spent()
        total = spent.plus(cost)
        if total.epsilon() > max_epsilon:
            # The error goes to the server, which has no business with what other runs have cost.
            logger.warning(
                "this answer would bring the privacy loss from epsilon %.4g for %d answers so far "
                "to %.4g, beyond fedsens-max-epsilon",
                spent.epsilon(),
                spent.answers,
                total.epsilon(),
            )
            raise DowngradeError(
                f"expected a privacy loss of at most epsilon {max_epsilon:g} for all answers of "
                "this client (fedsens-max-epsilon), got an answer that exceeds it; raise the "
                "server's fedsens.noise-scale or fedsens.dp-noise, or go on without this client"
            )
        return total

    def spend(self, cost: PrivacyLoss, max_epsilon: float = math.inf) -> PrivacyLoss:
        """Add the cost of an answer that is about to leave, unless :meth:`check` refuses it.

        Args:
            cost: of the answer.
            max_epsilon: see :meth:`check`.

        Returns:
            The cost so far, this answer included, which is on the disk.
        """
        with locked(self._path):
            total = self.check(cost, max_epsilon)
            header = AccountHeader(spent=total).model_dump_json()
            write_checked(self._path, header, {})
        return total
