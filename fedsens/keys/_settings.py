"""ClientSettings: what a data owner decides for its own client, out of the server's reach.

A setting comes from the node config (``flower-supernode --node-config``), else from the
environment (the way to configure a simulation), else from its default.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from fedsens._options import LIKE, Options
from fedsens.config import LOG_FORMAT, OUTPUT_DIR
from fedsens.crypto import Opens
from fedsens.protocol import LEAST_CONTRIBUTORS, MetricsForm
from fedsens.remainder import Remainder, policy_named

PREFIX = "fedsens-"
ENVIRONMENT = "FEDSENS_"
OF_THE_PROCESS = frozenset({LOG_FORMAT, OUTPUT_DIR})  # not of the client

logger = logging.getLogger(__name__)


class ClientSettings(Options):
    """A client's own settings; node config key and environment variable in brackets.

    Attributes:
        key_file: provisioned federation key, or a folder of several ``*.key`` that are used one
            after the other by name as the server rotates keys (``fedsens-key-file``,
            ``FEDSENS_KEY_FILE``). With it the client takes no part in key agreement.
        passphrase_file: file with the passphrase of locked keys (``fedsens-passphrase-file``,
            ``FEDSENS_PASSPHRASE_FILE``).
        identity_file: X25519 identity for key agreement (``fedsens-identity-file``,
            ``FEDSENS_IDENTITY_FILE``); by default one per run and node in the state folder.
        roster_file: JSON list of the only public keys that this client shares a key with
            (``fedsens-roster-file``, ``FEDSENS_ROSTER_FILE``).
        state_dir: folder for keys and records (``fedsens-state-dir``, ``FEDSENS_STATE_DIR``),
            by default ``~/.fedsens``.
        min_ratio: the smallest share of encrypted parameters that this client accepts
            (``fedsens-min-ratio``, ``FEDSENS_MIN_RATIO``); with a key file it has no default.
        remainder: the least that this client accepts for its plaintext remainder: ``plain``,
            ``noised`` or ``withheld`` (``fedsens-remainder``, ``FEDSENS_REMAINDER``).
        min_noise: the smallest ``fedsens.noise-scale`` that it accepts where ``remainder`` is
            ``noised`` (``fedsens-min-noise``, ``FEDSENS_MIN_NOISE``).
        min_contributors: the fewest clients of which this one opens an aggregate, be it a model or
            a map (``fedsens-min-contributors``, ``FEDSENS_MIN_CONTRIBUTORS``). In a sum of two
            each learns the other's value, so two must be chosen.
        max_norm: the largest L2 norm of an opened model, over all floating-point values; 0 for no
            bound (``fedsens-max-norm``, ``FEDSENS_MAX_NORM``).
        opens: who may open the sum that this client's uploads are in: ``clients``, or ``server``
            too, which then knows the mean (``fedsens-opens``, ``FEDSENS_OPENS``).
        moving_masks: whether a mask may leave out what an earlier one of the same model covered,
            so that its values show (``fedsens-moving-masks``, ``FEDSENS_MOVING_MASKS``).
        max_epsilon: the largest epsilon, at delta 1e-5, that all noised answers of this state
            folder, and the means with central noise that they are in, may cost together; infinite
            for no bound (``fedsens-max-epsilon``,
            ``FEDSENS_MAX_EPSILON``).
        initial_sha256: digest of the only initial model that this client works on, as
            ``fedsens inspect`` prints it; empty for whatever a run begins with
            (``fedsens-initial-sha256``, ``FEDSENS_INITIAL_SHA256``).
        min_dp_noise: the smallest ``fedsens.dp-noise`` that this client accepts
            (``fedsens-min-dp-noise``, ``FEDSENS_MIN_DP_NOISE``); 0 demands none.
        metrics: ``summed`` refuses a server that asks for this client's metrics in plaintext
            (``fedsens-metrics``, ``FEDSENS_METRICS``).
        allow_plain_maps: whether the server may see this client's sensitivity map
            (``fedsens-allow-plain-maps``, ``FEDSENS_ALLOW_PLAIN_MAPS``).
        processes: processes that may share the encryption (``fedsens-processes``,
            ``FEDSENS_PROCESSES``).
    """

    model_config = ConfigDict(alias_generator=lambda name: name.replace("_", "-"))
    _called: ClassVar = "this client's settings"
    _prefix: ClassVar = PREFIX
    _quotes: ClassVar = False  # an error travels to the server

    key_file: Path | None = None
    passphrase_file: Path | None = None
    identity_file: Path | None = None
    roster_file: Path | None = None
    state_dir: Path = Field(default_factory=lambda: Path.home() / ".fedsens")
    min_ratio: float = Field(default=0.0, ge=0, le=1)
    remainder: Remainder = "plain"
    min_noise: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    min_contributors: int = Field(default=LEAST_CONTRIBUTORS, ge=1)
    max_norm: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    opens: Opens = "clients"
    moving_masks: bool = False
    max_epsilon: float = Field(default=math.inf, gt=0)
    initial_sha256: str = Field(default="", pattern="^([0-9a-f]{64})?$")
    min_dp_noise: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    metrics: MetricsForm = "plain"
    allow_plain_maps: bool = False
    processes: int = Field(default=1, ge=1)

    @field_validator(
        "key_file", "passphrase_file", "identity_file", "roster_file", "state_dir", mode="before"
    )
    @classmethod
    def _named(cls, path: object) -> object:
        if path == "":  # which would be the current folder
            raise ValueError("expected a path, got an empty one; name it, or leave it out")
        return path

    @model_validator(mode="after")
    def _noise_is_demanded(self) -> Self:
        if "min_noise" in self.model_fields_set and not policy_named(self.remainder).has_noise:
            raise ValueError("min-noise has no say unless remainder is 'noised': set it too")
        return self

    @model_validator(mode="after")
    def _a_key_needs_a_ratio(self) -> Self:
        if self.key_file is not None and "min_ratio" not in self.model_fields_set:
            raise ValueError(
                "key-file needs min-ratio, the smallest share of the model that must be encrypted, "
                "else the server could ask for one parameter of it: write fedsens-min-ratio=1, or "
                "the ratio that was agreed on"
            )
        return self

    @property
    def demands_encryption(self) -> bool:
        """Whether something that the owner has set makes sense with encryption only."""
        pinned = self.key_file, self.roster_file
        private = self.min_dp_noise > 0 or self.max_epsilon < math.inf or self.metrics == "summed"
        return self.min_ratio > 0 or private or any(place is not None for place in pinned)

    @classmethod
    def from_node(
        cls, node_config: Mapping[str, Any], environment: Mapping[str, str] | None = None
    ) -> Self:
        """Read the settings of this client.

        Args:
            node_config: ``context.node_config``.
            environment: by default the process's environment.

        Returns:
            The settings.

        Raises:
            ConfigurationError: lists every wrong or unknown ``fedsens-*`` setting.
        """  # noqa: DOC502 - raised by the constructor
        found = _from_environment(os.environ if environment is None else environment)
        for key, value in node_config.items():
            if key.startswith(PREFIX):
                found[key.removeprefix(PREFIX)] = value
        return cls(**found)

    @classmethod
    def _unknown(cls, name: str) -> str:
        nearest = _nearest(name)
        if nearest in map(_setting, OF_THE_PROCESS):
            variable = ENVIRONMENT + nearest.upper().replace("-", "_")
            return f"no such setting; do you mean the variable {variable}?"
        if nearest:
            return f"no such setting; do you mean {PREFIX}{nearest}?"
        return f"no such setting; expected {', '.join(cls._names())}"


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """The settings among the variables, and what could be misspelt ones; others are left alone."""
    found: dict[str, Any] = {}
    known = ClientSettings._names()
    for name in sorted(environment):
        if not name.startswith(ENVIRONMENT) or name in OF_THE_PROCESS:
            continue
        setting = _setting(name)
        if setting in known or _nearest(setting):  # a misspelt one must not be ignored
            found[setting] = environment[name]
        else:
            logger.warning("%s is no setting of fedsens: it is ignored", name)
    return found


def _nearest(setting: str) -> str:
    """The setting that a misspelt one stands for; "" if it is like none."""
    names = [*ClientSettings._names(), *map(_setting, sorted(OF_THE_PROCESS))]
    shortened = [name for name in names if set(setting.split("-")) <= set(name.split("-"))]
    return next(iter([*get_close_matches(setting, names, n=1, cutoff=LIKE), *shortened]), "")


def _setting(variable: str) -> str:
    return variable.removeprefix(ENVIRONMENT).lower().replace("_", "-")
