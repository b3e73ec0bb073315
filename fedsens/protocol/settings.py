"""ClientSettings: what a data owner decides for its own client, out of the server's reach.

A setting comes from the node config (``flower-supernode --node-config``), else from the
environment (the way to configure a simulation), else from its default.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedsens.errors import ConfigurationError
from fedsens.protocol.contributors import LEAST
from fedsens.remainder import Remainder, policy_named

PREFIX = "fedsens-"
ENVIRONMENT = "FEDSENS_"
LOG_FORMAT = "FEDSENS_LOG_FORMAT"  # of the process, not of the client


class ClientSettings(BaseModel):
    """A client's own settings; node config key and environment variable in brackets.

    Attributes:
        key_file: provisioned secret key, or a folder of several ``*.key`` that are used one after
            the other by name as the server rotates keys (``fedsens-key-file``,
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
            (``fedsens-min-ratio``, ``FEDSENS_MIN_RATIO``).
        remainder: the least that this client accepts for its plaintext remainder: ``plain``,
            ``noised`` or ``withheld`` (``fedsens-remainder``, ``FEDSENS_REMAINDER``).
        min_noise: the smallest ``fedsens.noise-scale`` that it accepts where ``remainder`` is
            ``noised`` (``fedsens-min-noise``, ``FEDSENS_MIN_NOISE``).
        min_contributors: the fewest clients of which this one opens an aggregate, be it a model or
            a map (``fedsens-min-contributors``, ``FEDSENS_MIN_CONTRIBUTORS``).
        max_norm: the largest L2 norm of an opened model, over all floating-point values; 0 for no
            bound (``fedsens-max-norm``, ``FEDSENS_MAX_NORM``).
        allow_plain_maps: whether the server may see this client's sensitivity map
            (``fedsens-allow-plain-maps``, ``FEDSENS_ALLOW_PLAIN_MAPS``).
        processes: processes that may share the encryption (``fedsens-processes``,
            ``FEDSENS_PROCESSES``).
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=lambda n: n.replace("_", "-")
    )

    key_file: Path | None = None
    passphrase_file: Path | None = None
    identity_file: Path | None = None
    roster_file: Path | None = None
    state_dir: Path = Field(default_factory=lambda: Path.home() / ".fedsens")
    min_ratio: float = Field(default=0.0, ge=0, le=1)
    remainder: Remainder = "plain"
    min_noise: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    min_contributors: int = Field(default=LEAST, ge=1)
    max_norm: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    allow_plain_maps: bool = False
    processes: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _noise_is_demanded(self) -> Self:
        if "min_noise" in self.model_fields_set and not policy_named(self.remainder).has_noise:
            raise ValueError("min-noise has no say unless remainder is 'noised': set it too")
        return self

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
        """
        environment = os.environ if environment is None else environment
        found: dict[str, Any] = {}
        for name, value in environment.items():
            if (
                name.startswith(ENVIRONMENT) and name != LOG_FORMAT
            ):  # a misspelt one must not be ignored
                found[name.removeprefix(ENVIRONMENT).lower().replace("_", "-")] = value
        for key, value in node_config.items():
            if key.startswith(PREFIX):
                found[key.removeprefix(PREFIX)] = value
        try:
            return cls.model_validate(found)
        except ValidationError as error:
            problems = "; ".join(
                f"fedsens-{'.'.join(map(str, item['loc'])) or 'settings'}: {item['msg']}"
                for item in error.errors(include_url=False, include_input=False)
            )
            raise ConfigurationError(f"this client's settings are wrong: {problems}") from None
