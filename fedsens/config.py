"""FedSensConfig: what the server decides about a run, as one frozen object.

Settings of a client's own (keys, minimum ratio, roster) are not here: they belong to the data
owner and live in :class:`fedsens.keys.ClientSettings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from fedsens._extensions import load_extensions
from fedsens._options import Options
from fedsens.crypto import CkksParameters, Opens, PresetName
from fedsens.errors import ConfigurationError
from fedsens.mask import get_policy
from fedsens.remainder import (
    LEAST_SCALE,
    CentralPrivacy,
    Distribution,
    Remainder,
    RemainderTerms,
    policy_named,
)

PREFIX = "fedsens."
# Environment variables of a process, whose others of this prefix are a client's own settings.
LOG_FORMAT: Final = "FEDSENS_LOG_FORMAT"
OUTPUT_DIR: Final = "FEDSENS_OUTPUT_DIR"
EXAMPLES_CAP: Final = 64
LEAST_CLIENTS: Final = 3  # what clients demand of a sum by default
Fingerprint = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]

# Options that may differ between a run and its continuation: they say how long to wait for whom,
# which keys to use and where things lie, not what is computed.
EXCLUDED_FROM_RESUME_CHECK = frozenset({
    "rotate_at",
    "fingerprints",
    "key_timeout",
    "key_min_clients",
    "map_timeout",
    "map_min_clients",
    "examples_cap",
    "train_min_clients",
    "max_empty_rounds",
    "mask_timeout",
    "checkpoint_dir",
    "resume",
    "log_format",
})


def modules_in(given: Any) -> tuple[str, ...]:
    """The modules that a value of ``fedsens.import`` names."""
    names = given.split(",") if isinstance(given, str) else given
    return tuple(name.strip() for name in names if isinstance(name, str) and name.strip())


class FedSensConfig(Options):
    """The server's configuration of selective encryption.

    In a run config the keys are the names below with dashes, in the table
    ``[tool.flwr.app.config.fedsens]`` (``fedsens.refresh-every`` on the command line).

    Attributes:
        ratio: share of the parameters to encrypt, in [0, 1]. 0 switches fedsens off.
        max_mb: budget in MB (10^6 bytes) of one client in one round of training, both ways; the
            ratio is then the largest that keeps it on average, instead of ``ratio``: a ciphertext
            may be a quarter longer now and then. None for no budget.
        imports: modules that register policies or losses of your own (``fedsens.import``,
            comma-separated in a run config); clients import them, too.
        policy: registered mask policy.
        force: tensors, modules, patterns, "first" or "last" to encrypt whole (comma-separated in
            a run config).
        opens: who opens the sums: ``clients``, by a key that the server lacks, or ``server``, which
            then knows the mean and nobody's update, and can run any strategy that is a
            function of the mean. Every client's owner must allow it (``fedsens-opens``).
        groups: into how many groups the clients of a round are divided at random, where the server
            opens; each is summed by itself, and a robust strategy (FedMedian, Krum, ...) compares
            the groups' means. 1 for one sum of all.
        metrics: ``plain``, or ``summed`` for metrics of evaluations that clients encrypt, so that
            the server sees their mean and the number of all examples alone.
        seed: seed of policies that draw at random, and of groups.
        preset: CKKS preset for the parameters, by the bytes of a value: ``tiny`` (2), ``compact``
            (3), ``precise`` (4, what a plaintext float32 takes) or ``exact`` (7).
        value_range: range R of the preset, None for its default.
        rule: rule of the sensitivity map, ``vector`` or ``true_label``.
        maps: ``encrypted``, or ``plain`` for research: the server then sees every client's map.
        map_fraction: share of the clients that compute a map.
        refresh_every: rounds between two masks; 0 keeps the first for the whole run.
        moving_masks: whether a new mask may leave out what an earlier one covered, whose values
            the server then sees; every client must allow it. By default masks grow.
        rotate_at: rounds from which on a new key is used (comma-separated in a run config).
        fingerprints: of the keys in the order of their use, as ``fedsens keygen`` prints them;
            the server then accepts no other keys (comma-separated in a run config).
        refresh_below: a new mask replaces the one in use only if their overlap (intersection
            over union) is below this; 1 replaces whatever differs.
        remainder: what becomes of the parameters that are not encrypted: ``plain`` sends them as
            they are, ``noised`` with noise on every update, ``withheld`` leaves them with the
            client, which adds its updates to what it encrypts once the mask is refreshed.
        noise: distribution of the noise, ``gaussian`` or ``laplace``.
        noise_scale: standard deviation of the noise, relative to the root mean square of the
            visible update, or with ``noise_clip`` to that norm.
        dp_noise: noise multiplier of central differential privacy of the mean: every client clips
            its whole update and adds a share of the noise before it encrypts, as large as makes
            this multiplier in a mean of ``train_min_clients``; 0 adds none. It needs ratio 1.
        dp_clip: L2 norm that whole updates are clipped to for it.
        noise_clip: norm that the visible update is clipped to (l2 for Gaussian noise, l1 for
            Laplace noise), so that a privacy budget can be stated; 0 does not clip.
        key_timeout: seconds that each step of key agreement may take, and clients to give their
            keys to a sum.
        key_min_clients: clients that must hold the key for the run to start; by default
            ``train_min_clients``.
        map_timeout: seconds that clients have to answer with a map.
        map_min_clients: maps needed for a mask; by default ``train_min_clients``.
        examples_cap: how many times the median of the clients' numbers of examples one client may
            announce; more counts as less, because it costs all others precision.
        train_min_clients: updates that a round needs, or each group; with fewer the model stays as
            it was, or the group is void. Clients
            refuse an aggregate of fewer than their fedsens-min-contributors.
        max_empty_rounds: rounds in a row in which no client's update counts, after which the run
            ends with the clients' reasons. None ends it after the first round of the run, if all
            answers were errors or wrong, and else after three.
        mask_timeout: seconds that a key holder has to turn the aggregated map into a mask.
        checkpoint_dir: folder for the state after every round, of this run alone; None keeps none.
        resume: continue from the last complete round in that folder.
        log_format: ``text``, or ``json`` for one JSON object per line; empty leaves it to the
            environment.

    Raises:
        ConfigurationError: lists every wrong option.
    """

    model_config = ConfigDict(
        alias_generator=lambda name: name.replace("_", "-"), populate_by_name=True
    )
    _called: ClassVar = "the fedsens options"

    ratio: float = Field(default=0.1, ge=0, le=1, allow_inf_nan=False)
    max_mb: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    imports: tuple[str, ...] = Field(default=(), alias="import")
    policy: str = "sensitivity"
    force: tuple[str, ...] = ()
    opens: Opens = "clients"
    groups: int = Field(default=1, ge=1)
    metrics: Literal["plain", "summed"] = "plain"
    seed: int = Field(default=0, ge=0)
    preset: PresetName = "precise"
    value_range: float | None = Field(default=None, ge=2.0**-20, le=2.0**20, allow_inf_nan=False)
    rule: Literal["vector", "true_label"] = "vector"
    maps: Literal["encrypted", "plain"] = "encrypted"
    map_fraction: float = Field(default=1.0, gt=0, le=1)
    refresh_every: int = Field(default=0, ge=0)
    moving_masks: bool = False
    rotate_at: tuple[int, ...] = ()
    fingerprints: tuple[Fingerprint, ...] = ()
    refresh_below: float = Field(default=1.0, gt=0, le=1)
    remainder: Remainder = "plain"
    noise: Distribution = "gaussian"
    noise_scale: float = Field(default=1.0, ge=0, le=1e6, allow_inf_nan=False)
    noise_clip: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    dp_noise: float = Field(default=0.0, ge=0, le=1e6, allow_inf_nan=False)
    dp_clip: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    key_timeout: float = Field(default=120.0, gt=0)
    key_min_clients: int = Field(default=LEAST_CLIENTS, ge=1)
    map_timeout: float = Field(default=600.0, gt=0)
    map_min_clients: int = Field(default=LEAST_CLIENTS, ge=1)
    examples_cap: int = Field(default=EXAMPLES_CAP, ge=1)
    train_min_clients: int = Field(default=LEAST_CLIENTS, ge=1)
    max_empty_rounds: int | None = Field(default=None, ge=1)
    mask_timeout: float = Field(default=120.0, gt=0)
    checkpoint_dir: Path | None = None
    resume: bool = False
    log_format: Literal["", "text", "json"] = ""

    @model_validator(mode="before")
    @classmethod
    def _load(cls, options: Any) -> Any:
        given = (
            options.get("import", options.get("imports")) if isinstance(options, Mapping) else ()
        )
        if modules := modules_in(given or ()):
            load_extensions(modules)
        return options

    @model_validator(mode="before")
    @classmethod
    def _as_many_as_train(cls, options: Any) -> Any:
        """Keys and maps are needed from as many clients as updates are, unless said otherwise."""
        if not isinstance(options, Mapping):
            return options
        given = dict(options)
        for name in ("key", "map"):
            keys = f"{name}-min-clients", f"{name}_min_clients"
            if all(given.get(key, 0) == 0 for key in keys):  # a run config has no null
                _ = [given.pop(key, None) for key in keys]
                train = given.get("train-min-clients", given.get("train_min_clients"))
                given |= {} if train is None else {keys[0]: train}
        return given

    @field_validator("policy")
    @classmethod
    def _known_policy(cls, policy: str) -> str:
        try:
            get_policy(policy)
        except ConfigurationError as error:
            raise ValueError(str(error)) from None
        return policy

    @field_validator("imports", "force", "rotate_at", "fingerprints", mode="before")
    @classmethod
    def _split(cls, items: Any) -> Any:
        if isinstance(items, str):
            return tuple(item.strip() for item in items.split(",") if item.strip())
        return items

    @field_validator("rotate_at", mode="before")
    @classmethod
    def _one_round(cls, rounds: Any) -> Any:
        return (rounds,) if isinstance(rounds, int) else rounds

    @field_validator("rotate_at")
    @classmethod
    def _rising(cls, rounds: tuple[int, ...]) -> tuple[int, ...]:
        if list(rounds) != sorted(set(rounds)) or any(number < 2 for number in rounds):
            raise ValueError("rounds from 2 on, each larger than the one before")
        return rounds

    @field_validator("checkpoint_dir", "value_range", "max_mb", "max_empty_rounds", mode="before")
    @classmethod
    def _nothing_is_default(cls, value: Any) -> Any:
        return None if value in ("", 0) else value  # a run config has no null

    @model_validator(mode="after")
    def _gradient_means_true_label(self) -> Self:
        if self.policy == "gradient" and self.rule != "true_label":
            raise ValueError("policy 'gradient' ranks |gradient|: set rule to 'true_label'")
        return self

    @model_validator(mode="after")
    def _a_budget_needs_a_choice(self) -> Self:
        if self.max_mb is not None and get_policy(self.policy).ratio is not None:
            raise ValueError(f"max-mb has no say under policy {self.policy!r}: leave one out")
        return self

    @model_validator(mode="after")
    def _a_remainder_needs_a_rest(self) -> Self:
        policy = policy_named(self.remainder)
        if policy.needs_mask and not self.encrypts:
            raise ValueError(
                f"remainder {self.remainder!r} needs encryption: set ratio, or for noise without "
                "it use Flower's LocalDpMod"
            )
        if policy.masks_grow and self.moving_masks:
            raise ValueError(
                f"with a {self.remainder} remainder nobody could tell the server the values that "
                "leave a mask: leave out moving-masks"
            )
        if self.refresh_every and not self.moving_masks and self.max_mb is not None:
            raise ValueError(
                "max-mb holds for one mask, but refreshed masks add up: leave out max-mb or "
                "refresh-every, or set moving-masks"
            )
        return self

    @model_validator(mode="after")
    def _a_fingerprint_for_every_key(self) -> Self:
        if self.fingerprints and len(self.fingerprints) <= len(self.rotate_at):
            raise ValueError(f"fingerprints must name {len(self.rotate_at) + 1} keys")
        return self

    @model_validator(mode="after")
    def _the_server_has_no_key(self) -> Self:
        if self.opens == "server" and (self.rotate_at or self.fingerprints):
            raise ValueError("opens 'server' uses no key: leave out rotate-at and fingerprints")
        if self.groups > 1 and not self.server_opens:
            raise ValueError(
                "groups are compared by their means, which the server must know: set opens to "
                "'server' and a ratio, or leave groups out"
            )
        if self.opens == "server" and not policy_named(self.remainder).sends_plain:
            raise ValueError(
                f"opens 'server' shows the server the whole mean, but remainder {self.remainder!r} "
                "keeps a part with the clients: leave one out"
            )
        return self

    @model_validator(mode="after")
    def _sums_need_encryption(self) -> Self:
        if self.metrics == "summed" and not self.encrypts:
            raise ValueError(
                "metrics are summed under the keys of an encrypted run, which ratio 0 is not: set "
                "a ratio, or metrics to 'plain'"
            )
        return self

    @model_validator(mode="after")
    def _privacy_of_the_whole(self) -> Self:
        if (self.dp_noise > 0) != (self.dp_clip > 0):
            raise ValueError("dp-noise is relative to dp-clip: set both, or none")
        if 0 < self.dp_noise < LEAST_SCALE:
            raise ValueError(f"dp-noise below {LEAST_SCALE:g} is none: raise it, or set 0")
        if self.dp_noise and (self.max_mb is not None or self.effective_ratio < 1):
            raise ValueError(
                "dp-noise protects what is opened as a mean only: set ratio to 1, and no max-mb"
            )
        terms, most = self.central_privacy, self.parameters.value_range
        if terms is not None and terms.deviation > most / 2:
            raise ValueError(
                f"one client's noise of standard deviation dp-noise x dp-clip / "
                f"sqrt(train-min-clients) = {terms.deviation:.3g} leaves no room in the range of "
                f"{most:g} that values may have: lower dp-clip, or raise value-range to at least "
                f"{2 * terms.deviation:.3g}"
            )
        return self

    @model_validator(mode="after")
    def _resume_needs_a_folder(self) -> Self:
        if self.resume and self.checkpoint_dir is None:
            raise ValueError("resume continues from a checkpoint: set checkpoint-dir")
        return self

    @property
    def parameters(self) -> CkksParameters:
        """The CKKS parameters of the model's masked part."""
        return CkksParameters.preset(self.preset, self.value_range)

    def remainder_terms(self, experiment: str) -> RemainderTerms:
        """What clients are asked to do with the plaintext remainder.

        Args:
            experiment: random name of the run and of those that resume it.

        Returns:
            Part of the header of every model.
        """
        return RemainderTerms(
            remainder=self.remainder,
            noise=self.noise,
            scale=self.noise_scale,
            clip=self.noise_clip,
            experiment=experiment,
        )

    @property
    def central_privacy(self) -> CentralPrivacy | None:
        """What clients do for central differential privacy; None for nothing."""
        if not self.dp_noise:
            return None
        return CentralPrivacy(clip=self.dp_clip, noise=self.dp_noise, shares=self.train_min_clients)

    def key_index_at(self, server_round: int) -> int:
        """How often the key has been rotated by a round."""
        return sum(number <= server_round for number in self.rotate_at)

    @property
    def result_options(self) -> dict[str, Any]:
        """The options that the result depends on, as JSON values."""
        return self.model_dump(mode="json", exclude=set(EXCLUDED_FROM_RESUME_CHECK))

    @property
    def effective_ratio(self) -> float:
        """The ratio after the policy's own say (``all`` is 1, ``none`` is 0).

        With ``max_mb`` it is known only once the model is
        (:func:`fedsens.protocol.ratio_within`).
        """
        own = get_policy(self.policy).ratio
        return self.ratio if own is None else own

    @property
    def server_opens(self) -> bool:
        """Whether the server opens the sums of what is encrypted."""
        return self.encrypts and self.opens == "server"

    @property
    def encrypts(self) -> bool:
        """Whether anything is to be encrypted."""
        return self.max_mb is not None or self.effective_ratio > 0

    @classmethod
    def from_run_config(cls, run_config: Mapping[str, Any]) -> Self:
        """Read the ``fedsens.*`` keys of a Flower run config; other keys are the app's own.

        Args:
            run_config: ``context.run_config``.

        Returns:
            The configuration.

        Raises:
            ConfigurationError: lists every wrong option.
        """  # noqa: DOC502 - raised by the constructor
        options = {
            key.removeprefix(PREFIX): value
            for key, value in run_config.items()
            if key.startswith(PREFIX)
        }
        return cls(**options)
