"""RemainderTerms, what a server asks for, and RemainderPolicy, what a policy must be able to do.

:class:`Plain`, the policy that does nothing, shows how short one is.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, model_validator

from fedsens._files import Arrays
from fedsens._options import Options
from fedsens.errors import ConfigurationError, DowngradeError, ProtocolError
from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask, mask_count, partition, visible_statistics
from fedsens.remainder._account import Account, PrivacyLoss

MOST_SCALE: Final = 1e6  # a scale beyond it leaves nothing of the update

_policies: dict[str, type[RemainderPolicy]] = {}
P = TypeVar("P", bound="type[RemainderPolicy]")


def _known(name: str) -> str:
    if name not in _policies:
        raise ValueError(f"expected one of {', '.join(_by_protection())}, got {name!r}")
    return name


def _by_protection() -> list[str]:
    return sorted(_policies, key=lambda name: _policies[name].protection)


#: Distributions of the noise.
Distribution = Literal["gaussian", "laplace"]
Remainder = Annotated[str, AfterValidator(_known)]  #: a registered name
#: 16 bytes in hexadecimal that name an experiment, or nothing.
Experiment = Annotated[str, Field(pattern="^([0-9a-f]{32})?$")]


class RemainderTerms(Options):
    """Part of the header of every model that is sent.

    Attributes:
        remainder: name of the policy: ``plain`` sends the remainder as it is, ``noised`` with
            noise, ``withheld`` not at all.
        noise: distribution of the noise.
        scale: standard deviation of the noise, relative to the root mean square of the visible
            update, or with ``clip`` to that norm.
        clip: norm that the visible update is clipped to, l2 for Gaussian noise and l1 for Laplace
            noise; 0 does not clip.
        experiment: random name of the run and of those that resume it, by which a client finds
            what it kept in an earlier one.
    """

    _called: ClassVar = "the terms of the remainder"

    remainder: Remainder = "plain"
    noise: Distribution = "gaussian"
    scale: float = Field(default=1.0, ge=0, le=MOST_SCALE, allow_inf_nan=False)
    clip: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    experiment: Experiment = ""

    @model_validator(mode="after")
    def _kept_under_a_name(self) -> Self:
        if policy_named(self.remainder).needs_mask and not self.experiment:
            raise ValueError("an experiment is needed unless the remainder is plain")
        return self

    def policy(self) -> RemainderPolicy:
        """The policy that is asked for, both halves of it."""
        return _policies[self.remainder](self)


@dataclass(frozen=True)
class Leaving:
    """What leaves a client, and what has to be written before it does.

    Attributes:
        plain: the plaintext remainder; None if none is sent.
        masked: the k values to encrypt.
        commit: writes what the client keeps. Call it once the rest is ready to leave: an answer
            that does not leave then has changed nothing.
    """

    plain: Arrays | None
    masked: NDArray[np.floating]
    commit: Callable[[], None]


@dataclass(frozen=True)
class RemainderPolicy(ABC):
    """What becomes of the plaintext remainder of a client's update; both halves.

    A policy is one file with a subclass under :func:`register_remainder`. What it does not say is
    as for a remainder that is sent as it is.

    Attributes:
        terms: what the server asks for.
        name: by which the terms call it.
        protection: its rank, the more the better; a data owner demands at least one of the ranks.
        needs_received: whether a client must keep the model that it received until it answers.
        needs_mask: whether the policy says nothing where nothing is encrypted.
        sends_plain: whether a plaintext remainder leaves the client at all.
        masks_grow: whether a coordinate that was masked once stays masked.
        covers_integers: whether integer buffers, which a mask never holds, are protected, too.
        has_noise: whether a data owner's smallest scale of noise has a say.
        spoils_statistics: whether visible running statistics make the model useless.
    """

    terms: RemainderTerms
    name: ClassVar[str]
    protection: ClassVar[int]
    needs_received: ClassVar[bool] = True
    needs_mask: ClassVar[bool] = True
    sends_plain: ClassVar[bool] = True
    masks_grow: ClassVar[bool] = False
    covers_integers: ClassVar[bool] = False
    has_noise: ClassVar[bool] = False
    spoils_statistics: ClassVar[bool] = True

    # What the data owner demands, and what the model allows.

    def check(self, mask: EncryptionMask, least: Remainder, min_noise: float) -> None:
        """Refuse terms that protect less than a data owner demands.

        Args:
            mask: what the answer will be split by.
            least: the least protection of the remainder.
            min_noise: the smallest scale of noise, where noise is demanded and offered. Clipped to
                a norm, an update has a root mean square below that norm, so that the scale never
                means less than without clipping.

        Raises:
            DowngradeError: they protect less, or speak of a remainder where nothing is encrypted.
        """
        if self.needs_mask and not mask.k:
            raise DowngradeError(
                f"expected a mask, because the remainder is to be {self.name}, got an empty one"
            )
        demanded = policy_named(least)
        if 0 < mask.k == mask.size and not demanded.covers_integers:
            return  # nothing is left that could be protected
        if self.protection < demanded.protection:
            raise DowngradeError(
                f"expected a plaintext remainder that is at least {least} (fedsens-remainder), got "
                f"a request for {self.name}; set the server's fedsens.remainder to {least!r}"
            )
        if isinstance(self, demanded) and (weakness := self._weakness(min_noise)):
            raise DowngradeError(weakness)

    def _weakness(self, min_noise: float) -> str | None:
        """Why terms of the very policy that is demanded are too weak; None if they are not."""
        return None

    def check_budget(self, mask: EncryptionMask, folder: Path, max_epsilon: float) -> None:
        """Refuse an answer that the data owner's privacy budget does not cover.

        Call it before training; :meth:`protect` asks again when the answer is about to leave.

        Args:
            mask: what the answer will be split by.
            folder: the client's folder in this run.
            max_epsilon: the most that all answers from this state folder may cost together, at
                delta = 1e-5; infinity for no bound.

        Raises:
            DowngradeError: the account would exceed the bound, or no cost can be stated.
        """
        if math.isinf(max_epsilon) or not self.sends_plain or 0 < mask.k == mask.size:
            return
        cost = self.cost()
        if cost is None:
            raise DowngradeError(
                f"expected a plaintext remainder whose privacy loss can be stated, because at most "
                f"epsilon {max_epsilon:g} may be spent (fedsens-max-epsilon), got {self.name} "
                "without one; set the server's fedsens.remainder to 'noised' with "
                "fedsens.noise-clip, or to 'withheld'"
            )
        Account.of_client(folder).check(cost, max_epsilon)

    @classmethod
    def check_statistics(
        cls, layout: ParameterLayout, ratio: float, force: str | Iterable[str]
    ) -> None:
        """Refuse a model with running statistics that the policy would spoil.

        A variance with noise can be negative, which makes every output NaN; withheld statistics
        stay at their initial values on the server, so that evaluation normalises by them.

        Args:
            layout: the model's layout.
            ratio: the share that is encrypted.
            force: what is encrypted whole.

        Raises:
            ConfigurationError: names the tensors that must be encrypted.
        """
        whole = mask_count(ratio, layout.size) == layout.size
        if not cls.spoils_statistics or whole:
            return
        if visible := visible_statistics(layout, force):
            raise ConfigurationError(
                f"expected running statistics to be encrypted, because the remainder is "
                f"{cls.name}, got {', '.join(visible)} visible; add '*running_*' to fedsens.force"
            )

    # The client's half.

    @abstractmethod
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
        """Separate what is encrypted from what leaves in plaintext.

        Args:
            before: the model that was received; None if it was not kept, because the policy does
                not need it or the message was none to train.
            after: the model that was trained.
            mask: what is encrypted.
            layout: of the model.
            server_round: the round that is answered.
            folder: the client's folder in this run, ``run-*/node-*`` of its state folder.
            max_epsilon: see :meth:`check_budget`.

        Returns:
            What leaves; its ``commit`` raises DowngradeError where the budget is spent by then.

        Raises:
            ProtocolError: the policy needs the model that was received, and there is none.
        """

    def _received(self, before: Arrays | None) -> Arrays:
        if before is None:
            raise ProtocolError(
                f"expected a model in answers to training only, because the remainder is "
                f"{self.name}, got one in another answer; send metrics"
            )
        return before

    # The server's half.

    def stand_in(
        self, visible: Arrays, mask: EncryptionMask, layout: ParameterLayout
    ) -> Arrays | None:
        """What stands for each client's remainder in the inner strategy's mean.

        Args:
            visible: what the server knows of the global model, NaN where it knows nothing.
            mask: what the answers are split by.
            layout: of the model.

        Returns:
            None if the remainders that came do.
        """
        return None

    def cost(self, answers: int = 1) -> PrivacyLoss | None:
        """The privacy that answers under these terms cost.

        Args:
            answers: how many.

        Returns:
            The cost, None where none can be stated.
        """
        return None

    def epsilon(self, answers: int) -> float | None:
        """The differential privacy of a client's answers, for the server's report.

        Args:
            answers: how many.

        Returns:
            Epsilon at delta = 1e-5, None where none can be stated.
        """
        cost = self.cost(answers)
        return None if cost is None else cost.epsilon()

    def describe(self) -> str | None:
        """One line for the log of a run; None where there is nothing to say."""
        return None


def register_remainder(policy: P) -> P:
    """Make the decorated policy known by its name."""
    _policies[policy.name] = policy
    return policy


def policy_named(name: str) -> type[RemainderPolicy]:
    """The class of a policy.

    Args:
        name: by which terms and settings call it.

    Returns:
        The class.

    Raises:
        ConfigurationError: there is none of this name.
    """
    try:
        return _policies[_known(name)]
    except ValueError as error:
        raise ConfigurationError(f"{error} as the remainder") from None


@register_remainder
class Plain(RemainderPolicy):
    """The remainder leaves as it is, and the inner strategy averages it."""

    name: ClassVar = "plain"
    protection: ClassVar = 0
    needs_received: ClassVar = False
    needs_mask: ClassVar = False
    spoils_statistics: ClassVar = False

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
        """Split the trained model; nothing is kept."""
        plain, masked = partition(after, mask, layout)
        return Leaving(plain, masked, commit=lambda: None)
