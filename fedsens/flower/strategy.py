"""SelectiveEncryption: the server half, a strategy that wraps a strategy."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedsens.config import FedSensConfig
from fedsens.errors import ConfigurationError, PhaseError, ProtocolError, StrategyError
from fedsens.flower.agreement import KeyAgreement
from fedsens.flower.client import REFUSED
from fedsens.flower.compatibility import check_strategy
from fedsens.flower.exchange import by_node, total, wait_for_nodes
from fedsens.flower.masking import Masking
from fedsens.flower.records import HEADER, put_model, to_arrays, to_record
from fedsens.flower.updates import Updates, usable_metrics
from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask, mask_count
from fedsens.protocol.headers import ModelHeader
from fedsens.protocol.model import ProtectedModel
from fedsens.protocol.report import PhaseReport

logger = logging.getLogger(__name__)


class SelectiveEncryption(Strategy):
    """Runs a strategy while the masked coordinates stay encrypted (FedML-HE, arXiv 2303.10837).

    ::

        strategy = SelectiveEncryption(FedAvg(), FedSensConfig.from_run_config(run_config))
        result = strategy.start(grid, initial_arrays, num_rounds=5)
        save_protected(strategy.model, "model.safetensors")

    The inner strategy samples clients and averages the plaintext remainder as ever; this one adds
    the ciphertexts of the same replies with the same weights. ``result.arrays`` has NaN at masked
    coordinates, because the server does not know them. With ratio 0 the result is the inner
    strategy's, bit for bit.

    Attributes:
        reports: what every phase cost so far.
    """

    def __init__(
        self,
        strategy: Strategy,
        config: FedSensConfig | None = None,
        *,
        weighted_mean: bool = False,
        on_report: Callable[[PhaseReport], None] | None = None,
    ) -> None:
        """Wrap a strategy.

        Args:
            strategy: FedAvg, FedProx, or another that averages weighted by examples.
            config: the configuration, by default ``FedSensConfig()``.
            weighted_mean: vouches that a strategy fedsens does not know averages weighted by
                examples.
            on_report: called with the report of every phase as it ends.
        """
        self.inner = strategy
        self.config = config or FedSensConfig()
        check_strategy(strategy, self.config.effective_ratio, weighted_mean)
        self.reports: list[PhaseReport] = []
        self._on_report = on_report
        self._weighted_by = str(getattr(strategy, "weighted_by_key", "num-examples"))
        self._keys = KeyAgreement(self.config.parameters, self.config.key_timeout)
        self._model: ProtectedModel | None = None
        self._mask: EncryptionMask | None = None
        self._sent: list[Message] = []
        self._reference = 1.0
        self._started = 0.0

    @property
    def model(self) -> ProtectedModel:
        """The global model in split form, for export.

        Raises:
            ProtocolError: no round has started yet.
        """
        if self._model is None:
            raise ProtocolError("expected a started run to take the model from, got none")
        return self._model

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run the federation, as :meth:`flwr.serverapp.strategy.Strategy.start` does.

        Args:
            grid: Flower's grid.
            initial_arrays: the initial model, known to the server.
            num_rounds: rounds to run.
            timeout: deadline of each train and evaluate phase in seconds.
            train_config: configuration for the clients' train function.
            evaluate_config: configuration for the clients' evaluate function.
            evaluate_fn: only with ratio 0, see the error.

        Returns:
            Flower's result.

        Raises:
            StrategyError: ``evaluate_fn`` is given, but the server will not know the model.
        """
        if evaluate_fn is not None and self.config.effective_ratio > 0:
            raise StrategyError(
                "expected no evaluate_fn, because the server does not know masked parameters, got "
                "one; evaluate on the clients, or open an exported model with the key"
            )
        self._model = self._mask = None  # of an earlier run
        self._keys = KeyAgreement(self.config.parameters, self.config.key_timeout)
        result = super().start(
            grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn
        )
        if self._model is not None and self._model.mask.k:
            result.arrays = to_record(self._model.visible())
        return result

    def summary(self) -> None:
        """Log what is encrypted and how, then the inner strategy's summary."""
        config, parameters = self.config, self.config.parameters
        logger.info(
            "SelectiveEncryption: policy %s, ratio %g, CKKS %s (%d-bit security), %s maps",
            config.policy,
            config.effective_ratio,
            parameters.name,
            parameters.security_bits,
            config.maps,
        )
        self.inner.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Agree on key and mask where needed, then let the inner strategy sample clients."""
        if self._model is None:
            self._begin(arrays)
        if self.config.effective_ratio > 0:
            self._prepare(server_round, grid)
        messages = self.inner.configure_train(server_round, arrays, config, grid)
        self._sent = self._dress(messages, server_round, grid)
        return self._sent

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add the ciphertexts and let the inner strategy average the rest of the same replies."""
        model, mask = self.model, self._current_mask()
        header = self._header(server_round)
        updates = Updates(header, model.layout, mask, self._keys.fingerprint)
        answers = by_node(self._sent, replies)
        up = total(reply.content for reply in answers.values() if reply.has_content())
        for node, reply in answers.items():
            if not updates.take(node, reply):
                self._keys.forget(node)
        good, ciphertext, weight = updates.add()
        arrays, metrics = self.inner.aggregate_train(server_round, good)
        if arrays is not None and good:
            self._model = ProtectedModel(
                model.layout,
                mask,
                to_arrays(arrays),
                ciphertext,
                weight,
                model.parameters,
                server_round,
            )
        report = self._phase("train", server_round, len(good), up, metrics, updates.seconds())
        if metrics is not None:
            metrics.update(_as_metrics(report))
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the inner strategy sample clients and give them what they need to open the model."""
        messages = self.inner.configure_evaluate(server_round, arrays, config, grid)
        self._sent = self._dress(messages, server_round, grid)
        return self._sent

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Let the inner strategy average the metrics."""
        answers = by_node(self._sent, replies)
        up = total(reply.content for reply in answers.values() if reply.has_content())
        errors = [reply for reply in answers.values() if reply.has_error()]
        good = [reply for reply in answers.values() if not reply.has_error()]
        for node, reply in answers.items():
            if reply.has_error() and reply.error.code == REFUSED:
                self._keys.forget(node)
        for reply in good:
            reply.content.pop(HEADER, None)
        if self._current_mask().k:
            good = usable_metrics(good, self._weighted_by)
        metrics = self.inner.aggregate_evaluate(server_round, [*good, *errors])
        if self._sent:
            self._phase("evaluate", server_round, len(good), up, metrics, {})
        return metrics

    def _begin(self, arrays: ArrayRecord) -> None:
        state = to_arrays(arrays)
        layout = ParameterLayout.from_state_dict(state)
        ratio = self.config.effective_ratio
        if ratio > 0 and not mask_count(ratio, layout.size):
            raise ConfigurationError(
                f"expected a ratio that encrypts at least one of {layout.size} parameters, got "
                f"{ratio}; raise fedsens.ratio, or set it to 0 to switch encryption off"
            )
        nothing = EncryptionMask(np.zeros(layout.size, np.bool_), layout.digest)
        self._model = ProtectedModel(layout, nothing, state, None, 0.0, self.config.parameters)
        self._mask = nothing

    def _prepare(self, server_round: int, grid: Grid) -> None:
        first, every = not self._current_mask().k, self.config.refresh_every
        if first:
            nodes = wait_for_nodes(grid, self.config.key_min_clients, self.config.key_timeout)
            self._agree(grid, nodes, server_round)
            held = len(self._keys.examples)
            if held < self.config.key_min_clients:
                raise PhaseError(
                    f"expected at least {self.config.key_min_clients} clients with the key, got "
                    f"{held}; see the warnings above, or lower fedsens.key-min-clients"
                )
        refresh = every > 0 and server_round > 1 and (server_round - 1) % every == 0
        if first or refresh:
            self._renew_mask(server_round, grid, must=first)

    def _renew_mask(self, server_round: int, grid: Grid, must: bool) -> None:
        masking = Masking(self.config, self._keys, self.model.layout)

        def current() -> RecordDict:
            content = RecordDict({"arrays": to_record(self.model.plain)})
            put_model(content, self.model, self._header(server_round), self._current_mask())
            return content

        try:
            self._mask = masking.make(grid, current, server_round)
        except PhaseError as error:
            if must:
                raise
            logger.warning("the mask of the earlier rounds stays in use: %s", error)
        for report in masking.reports:
            self._emit(report)
        logger.info("mask of round %d: %r", server_round, self._mask)

    def _dress(self, messages: Iterable[Message], server_round: int, grid: Grid) -> list[Message]:
        messages = list(messages)
        if self.config.effective_ratio > 0:
            self._agree(grid, [m.metadata.dst_node_id for m in messages], server_round)
            known = self._keys.examples
            for message in messages:
                if message.metadata.dst_node_id not in known:
                    logger.warning("node %s holds no key; left out", message.metadata.dst_node_id)
            messages = [m for m in messages if m.metadata.dst_node_id in known]
            # The weights n_i / N_ref of whoever answers add up to at most 1.
            self._reference = float(sum(known[m.metadata.dst_node_id] for m in messages)) or 1.0
        header = self._header(server_round)
        for content in {id(m.content): m.content for m in messages}.values():
            put_model(content, self.model, header, self._current_mask())
        self._started = time.monotonic()
        return messages

    def _agree(self, grid: Grid, nodes: Iterable[int], server_round: int) -> None:
        report = self._keys.agree(grid, nodes, server_round)
        if report is not None:
            self._emit(report)

    def _header(self, server_round: int) -> ModelHeader:
        return ModelHeader(
            round=server_round,
            model_round=self.model.round,
            layout=self.model.layout.to_json(),
            model_mask=self.model.mask.digest,
            mask=self._current_mask().digest,
            parameters=self.config.parameters,
            fingerprint=self._keys.fingerprint,
            weight=self.model.weight,
            reference=self._reference,
            weighted_by=self._weighted_by,
        )

    def _current_mask(self) -> EncryptionMask:
        if self._mask is None:
            raise ProtocolError("expected configure_train to be called first, got another call")
        return self._mask

    def _phase(
        self,
        phase: str,
        server_round: int,
        clients: int,
        up: tuple[int, int],
        metrics: MetricRecord | None,
        seconds: dict[str, float],
    ) -> PhaseReport:
        down = total(message.content for message in self._sent)
        values = metrics.items() if metrics is not None else ()
        report = PhaseReport.model_validate({
            "phase": phase,
            "round": server_round,
            "clients": clients,
            "lost": len(self._sent) - clients,
            "bytes_up_plain": up[0],
            "bytes_up_encrypted": up[1],
            "bytes_down_plain": down[0],
            "bytes_down_encrypted": down[1],
            "seconds": time.monotonic() - self._started,
            "metrics": {k: v for k, v in values if isinstance(v, int | float)},
            **seconds,
        })
        self._emit(report)
        return report

    def _emit(self, report: PhaseReport) -> None:
        self.reports.append(report)
        logger.info("%s", report)
        if self._on_report is not None:
            self._on_report(report)


def _as_metrics(report: PhaseReport) -> dict[str, int | float]:
    numbers = report.model_dump(exclude={"phase", "round", "metrics"})
    return {f"fedsens.{name.replace('_', '-')}": value for name, value in numbers.items()}
