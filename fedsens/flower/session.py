"""Session: what the server knows and does in one run, besides Flower's own loop."""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

import numpy as np
from flwr.app import ArrayRecord, Message, Metadata, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedsens.config import FedSensConfig
from fedsens.crypto import MAP_PARAMETERS, CkksParameters
from fedsens.errors import CheckpointError, ConfigurationError, LayoutError, PhaseError
from fedsens.flower.agreement import KeyAgreement
from fedsens.flower.exchange import (
    attribute,
    report_of,
    total,
    wait_for_nodes,
)
from fedsens.flower.logs import reason_of
from fedsens.flower.masking import Masking
from fedsens.flower.records import model_key, put_model, to_arrays, to_record
from fedsens.flower.rotation import move_model
from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask, check_plain, mask_count
from fedsens.protocol.checkpoint import Checkpoint
from fedsens.protocol.contributors import Contributors
from fedsens.protocol.headers import ModelHeader
from fedsens.protocol.keyfile import PublicParameters, load_publics
from fedsens.protocol.model import ProtectedModel
from fedsens.protocol.report import Phase, PhaseReport
from fedsens.protocol.traffic import ratio_within
from fedsens.remainder import RemainderTerms, policy_named

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Session:
    """The state of a run: keys, the split global model, the mask, and what was last sent.

    Attributes:
        keys: who holds the key.
        model: the global model, split by the mask of the round that made it.
        mask: what the next answers must be split by.
        sent: metadata of the messages of the current phase.
        reference: N_ref, the examples of the clients that the current model was sent to.
        deadline: seconds for each phase; late answers expire.
        experiment: random name of the run and of those that resume it.
    """

    def __init__(
        self,
        config: FedSensConfig,
        weighted_by: str,
        emit: Callable[[PhaseReport], None],
        initial: ArrayRecord,
    ) -> None:
        """Begin with a model that the server knows whole.

        Args:
            config: the configuration.
            weighted_by: name of the metric that counts examples.
            emit: called with the report of each phase.
            initial: the initial model.

        Raises:
            ConfigurationError: the ratio is not 0, but encrypts no parameter of this model.
        """
        self._config = config = _within_budget(config, initial)
        self._public = load_publics(config.public_parameters)
        _check_public(self._public, config.parameters)
        self.keys = self._new_keys()
        self.sent: list[Metadata] = []
        self._down = (0, 0)
        self._weighted_by = weighted_by
        self._emit = emit
        self.reference = 1.0
        self._gathered = False
        self._started = 0.0
        self.deadline = math.inf
        self.experiment = secrets.token_hex(16)
        self._record = "arrays"
        self.replace_plain(initial, 0)
        ratio, size = config.effective_ratio, self.model.layout.size
        self.terms.policy().check_statistics(self.model.layout, ratio, config.force)
        if ratio > 0 and not mask_count(ratio, size):
            raise ConfigurationError(
                f"expected a ratio that encrypts at least one of {size} parameters, got {ratio}; "
                "raise fedsens.ratio, or set it to 0 to switch encryption off"
            )

    def replace_plain(self, arrays: ArrayRecord, server_round: int) -> None:
        """Take a model of which nothing is encrypted.

        Args:
            arrays: the model.
            server_round: the round whose result it is.
        """
        state = to_arrays(arrays)
        layout = ParameterLayout.from_state_dict(state)
        self.mask = EncryptionMask(np.zeros(layout.size, np.bool_), layout.digest)
        self.model = ProtectedModel(
            layout, self.mask, state, None, 0.0, self._config.parameters, server_round
        )

    def replace(
        self,
        arrays: ArrayRecord,
        ciphertext: bytes | None,
        contributors: Contributors | None,
        server_round: int,
    ) -> None:
        """Take the result of a round.

        Args:
            arrays: the averaged remainder.
            ciphertext: the summed ciphertexts.
            contributors: who they are from.
            server_round: the round.
        """
        old = self.model
        self.model = ProtectedModel(
            old.layout,
            self.mask,
            to_arrays(arrays),
            ciphertext,
            contributors.weight if contributors else 0.0,
            old.parameters,
            server_round,
            contributors,
        )

    def prepare(self, server_round: int, grid: Grid) -> None:
        """Agree on a key before the first round, and on a mask where one is due.

        Args:
            server_round: the round about to start.
            grid: Flower's grid.
        """
        if self._config.effective_ratio == 0:
            return
        first, every = not self.mask.k, self._config.refresh_every
        if first or not self._gathered:
            self.gather(server_round, grid)
        if self._config.generation_at(server_round) > self.keys.generation:
            self._rotate(server_round, grid)
        if first or (every > 0 and (server_round - 1) % every == 0):
            self._renew_mask(server_round, grid, must=first)

    def gather(self, server_round: int, grid: Grid) -> None:
        """Wait for the clients that a run needs at least, and bring them to one key.

        Args:
            server_round: the round, for the report.
            grid: Flower's grid.

        Raises:
            PhaseError: too few clients hold the key.
        """
        config, known = self._config, self.keys.fingerprint
        if config.effective_ratio == 0:
            return
        nodes = wait_for_nodes(grid, config.key_min_clients, config.key_timeout)
        self._agree(grid, nodes, server_round)
        if len(self.keys.examples) < config.key_min_clients:
            raise PhaseError(
                f"expected at least {config.key_min_clients} clients with the key"
                f"{' ' + known if known else ''}, got {len(self.keys.examples)}; see the warnings "
                "above, or lower fedsens.key-min-clients"
            )
        self._gathered = True

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to where an earlier process was.

        Args:
            checkpoint: its state.

        Raises:
            CheckpointError: the saved model has another layout.
        """
        try:
            # A strategy's mean of integer buffers is a float, so types are no matter.
            check_plain(checkpoint.model.visible(), self.model.layout, self.mask)
        except LayoutError as error:
            raise CheckpointError(
                f"expected a checkpoint of this run's model, got another: {error}; use the model "
                "of the saved run, or start anew in another folder"
            ) from None
        self.model, self.mask = checkpoint.model, checkpoint.mask
        saved = checkpoint.progress
        self.reference = saved.reference
        self.experiment = saved.experiment or self.experiment
        self.keys = self._new_keys(saved.fingerprint, saved.generation)

    def dress(self, messages: Iterable[Message], server_round: int, grid: Grid) -> list[Message]:
        """Add to the inner strategy's messages what clients need to open and protect models.

        Args:
            messages: what the inner strategy wants to send.
            server_round: the round.
            grid: Flower's grid.

        Returns:
            The messages to nodes that hold the key.
        """
        messages = list(messages)
        if self._config.effective_ratio > 0:
            self._agree(grid, [m.metadata.dst_node_id for m in messages], server_round)
            known = self.keys.examples
            for message in messages:
                if message.metadata.dst_node_id not in known:
                    logger.warning(
                        "node %s holds no key; left out, until it has the key file of the others "
                        "or takes part in key agreement",
                        message.metadata.dst_node_id,
                    )
            messages = [m for m in messages if m.metadata.dst_node_id in known]
            self.reference = self.keys.reference(m.metadata.dst_node_id for m in messages)
        header = self.header(server_round)
        self._record = next((model_key(m.content) for m in messages), self._record)
        for content in {id(m.content): m.content for m in messages}.values():
            put_model(content, self.model, header, self.mask)
        for message in messages:  # else a slow node would work through a backlog
            message.metadata.ttl = min(message.metadata.ttl, self.deadline)
        self.sent = [message.metadata for message in messages]
        self._down = total(message.content for message in messages)
        self._started = time.monotonic()
        return messages

    def attribute(
        self, phase: Phase, server_round: int, replies: Iterable[Message]
    ) -> Iterator[tuple[int, Message]]:
        """Attribute replies to nodes as they arrive, and warn of every node that is lost.

        Args:
            phase: "train" or "evaluate".
            server_round: the round.
            replies: what comes back.

        Yields:
            A node and its reply, errors included.
        """
        what = f"{phase} of round {server_round}"
        for node, reply in attribute(self.sent, replies, what):
            if reply.has_error():
                logger.warning("node %s is lost for %s: %s", node, what, reason_of(reply.error))
            yield node, reply

    @property
    def run(self) -> int:
        """The Flower run, once messages have been sent; 0 where nobody was asked."""
        return self.sent[0].run_id if self.sent else 0

    def in_order(self, answers: Mapping[int, T]) -> list[T]:
        """Answers in the order of the messages, so that sums do not depend on who is first.

        Args:
            answers: node to answer.

        Returns:
            The answers.
        """
        return [answers[each.dst_node_id] for each in self.sent if each.dst_node_id in answers]

    def header(self, server_round: int) -> ModelHeader:
        """The header of the current model.

        Args:
            server_round: the round it is sent in.

        Returns:
            The header.
        """
        return ModelHeader(
            round=server_round,
            model_round=self.model.round,
            layout=self.model.layout.to_json(),
            model_mask=self.model.mask.digest,
            mask=self.mask.digest,
            parameters=self._config.parameters,
            fingerprint=self.keys.fingerprint,
            generation=self.keys.generation,
            weight=self.model.weight,
            contributors=self.model.contributors,
            reference=self.reference,
            weighted_by=self._weighted_by,
            remainder=self.terms,
        )

    @property
    def terms(self) -> RemainderTerms:
        """What clients do with the plaintext remainder."""
        return self._config.remainder_terms(self.experiment)

    def withheld(self) -> RecordDict | None:
        """The remainder of the global model under the mask in use, where clients withhold theirs.

        The mask has grown only, so there is no coordinate in it that the server does not know.

        Returns:
            The record that the inner strategy gets in place of each client's, None if they come.
        """
        policy = self.terms.policy()
        plain = policy.stand_in(self.model.visible(), self.mask, self.model.layout)
        return None if plain is None else RecordDict({self._record: to_record(plain)})

    def report(
        self,
        phase: Phase,
        server_round: int,
        clients: int,
        up: tuple[int, int],
        metrics: MetricRecord | None,
        seconds: dict[str, float],
        refused: int = 0,
    ) -> PhaseReport:
        """Report the phase that began with :meth:`dress`.

        Args:
            phase: "train" or "evaluate".
            server_round: the round.
            clients: usable answers.
            up: plaintext and ciphertext bytes of all answers.
            metrics: the inner strategy's.
            seconds: CPU seconds of encrypting, adding and decrypting.
            refused: answers that were left out as wrong.

        Returns:
            The report, which has been emitted.
        """
        values = metrics.items() if metrics is not None else ()
        report = PhaseReport(
            phase=phase,
            round=server_round,
            clients=clients,
            lost=len(self.sent) - clients,
            refused=refused,
            bytes_up_plain=up[0],
            bytes_up_encrypted=up[1],
            bytes_down_plain=self._down[0],
            bytes_down_encrypted=self._down[1],
            seconds=time.monotonic() - self._started,
            metrics={k: v for k, v in values if isinstance(v, int | float)},
            epsilon=self.terms.policy().epsilon(server_round) if phase == "train" else None,
            **seconds,
        )
        self._emit(report)
        return report

    def _rotate(self, server_round: int, grid: Grid) -> None:
        config, old = self._config, self.keys
        new = self._new_keys(generation=config.generation_at(server_round))
        if report := new.agree(grid, grid.get_node_ids(), server_round):
            self._emit(report)
        if len(new.examples) < config.key_min_clients or new.fingerprint == old.fingerprint:
            raise PhaseError(
                f"expected at least {config.key_min_clients} clients with a new key from round "
                f"{server_round} on, got {len(new.examples)} with the key "
                f"{new.fingerprint or 'none'}; give every client key {new.generation + 1}, then "
                "resume the run"
            )
        if self.model.ciphertext is not None:
            content = self._shown(server_round)
            self.model, answers = move_model(
                grid, self.model, content, old, new, config.mask_timeout
            )
            self._emit(report_of("rotate", server_round, answers, 1))
        self.keys = new
        logger.info("key from round %d on: %s", server_round, new.fingerprint)

    def _shown(self, server_round: int) -> RecordDict:
        """A content that shows a client the current model."""
        content = RecordDict({"arrays": to_record(self.model.plain)})
        put_model(content, self.model, self.header(server_round), self.mask)
        return content

    def _new_keys(self, fingerprint: str = "", generation: int = 0) -> KeyAgreement:
        config = self._config
        if self._public and fingerprint in {"", self._public[generation].fingerprint}:
            fingerprint = self._public[generation].fingerprint
        elif self._public:
            raise CheckpointError(
                f"expected a checkpoint under the key {self._public[generation].fingerprint} of "
                f"fedsens.public-parameters, got one under {fingerprint}"
            )
        return KeyAgreement(config.parameters, config.key_timeout, fingerprint, generation)

    def _agree(self, grid: Grid, nodes: Iterable[int], server_round: int) -> None:
        report = self.keys.agree(grid, nodes, server_round)
        if report is not None:
            self._emit(report)

    def _renew_mask(self, server_round: int, grid: Grid, must: bool) -> None:
        masking = Masking(self._config, self.keys, self.model.layout)
        try:
            new = masking.make(grid, lambda: self._shown(server_round), server_round)
        except PhaseError as error:
            if must:
                raise
            logger.warning("the mask of the earlier rounds stays in use: %s", error)
            new = self.mask
        overlap = self.mask.overlap(new)
        if must or overlap < self._config.refresh_below:
            self.mask = self.terms.policy().next_mask(self.mask, new)
        for report in masking.reports:
            self._emit(report)
        logger.info(
            "mask of round %d: %d of %d parameters encrypted, digest %s, overlap %.2f with before",
            server_round,
            self.mask.k,
            self.mask.size,
            self.mask.digest[:16],
            overlap,
        )


def _within_budget(config: FedSensConfig, initial: ArrayRecord) -> FedSensConfig:
    if config.max_mb is None:
        return config
    size = ParameterLayout.from_state_dict(to_arrays(initial)).size
    policy = policy_named(config.remainder)
    ratio = ratio_within(config.parameters, size, config.max_mb, not policy.sends_plain)
    logger.info("ratio %.4g: the largest within %g MB a client and round", ratio, config.max_mb)
    return config.model_copy(update={"ratio": ratio, "max_mb": None})


def _check_public(public: Iterable[PublicParameters], parameters: CkksParameters) -> None:
    for each in public:
        missing = {parameters, MAP_PARAMETERS} - set(each.parameters)
        if missing:
            raise ConfigurationError(
                f"expected the key {each.fingerprint} to cover {sorted(map(repr, missing))}, got "
                f"{list(each.parameters)!r}; set fedsens.preset and fedsens.value-range as in "
                "fedsens keygen, or make a new key"
            )
