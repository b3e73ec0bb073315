"""SelectiveEncryption: the server half, a strategy that wraps a strategy."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedsens.config import FedSensConfig
from fedsens.errors import ProtocolError, StrategyError
from fedsens.flower.arrivals import StreamingGrid
from fedsens.flower.client import REFUSED
from fedsens.flower.compatibility import check_strategy
from fedsens.flower.exchange import plus, total
from fedsens.flower.logs import FIGURES
from fedsens.flower.records import HEADER, examples_of, size_of, to_record
from fedsens.flower.refusal import stop_if_refused
from fedsens.flower.resume import Checkpoints, History, config_of_start
from fedsens.flower.rounds import EvaluateFn, Rounds, go_on
from fedsens.flower.session import Session
from fedsens.flower.updates import Form, Updates, usable_metrics
from fedsens.protocol.model import ProtectedModel
from fedsens.protocol.report import PhaseReport

logger = logging.getLogger(__name__)

SMALL_WEIGHT = 0.1  # of the announced examples; below it the precision loss is worth a word


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

    With ``checkpoint_dir`` in the configuration the state is saved after the training of every
    round, and with ``resume`` a new process continues from the last complete round: same model,
    key, mask, sampling and metrics.

    Attributes:
        reports: what every phase cost so far.
    """

    def __init__(
        self,
        strategy: Strategy,
        config: FedSensConfig | None = None,
        *,
        weighted_mean: bool = False,
        app_config: Mapping[str, Any] | None = None,
        on_report: Callable[[PhaseReport], None] | None = None,
    ) -> None:
        """Wrap a strategy.

        Args:
            strategy: FedAvg, FedProx, or another that averages weighted by examples.
            config: the configuration, by default ``FedSensConfig()``.
            weighted_mean: vouches that a strategy fedsens does not know averages weighted by
                examples.
            app_config: what else the result depends on, such as the app's run config. A run whose
                checkpoint was made with other values is not resumed.
            on_report: called with the report of every phase as it ends; in a resumed run, with
                those of the earlier rounds first.
        """
        self.inner = strategy
        self.config = config or FedSensConfig()
        check_strategy(strategy, self.config.encrypts, weighted_mean)
        self.reports: list[PhaseReport] = []
        self._on_report = on_report
        self._app_config = app_config or {}
        self._checkpoints: Checkpoints | None = None
        self._history = History()
        self._deadline = math.inf
        self._started = False
        self._weighted_by = str(getattr(strategy, "weighted_by_key", "num-examples"))
        self._session: Session | None = None
        self._form: Form | None = None

    @property
    def model(self) -> ProtectedModel:
        """The global model in split form, for export; ProtocolError before the first round."""
        return self._run.model

    @property
    def _run(self) -> Session:
        if self._session is None:
            raise ProtocolError("expected a run that has begun, got none; start the strategy")
        return self._session

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
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
        if evaluate_fn is not None and self.config.encrypts:
            raise StrategyError(
                "expected no evaluate_fn, because the server does not know masked parameters, got "
                "one; evaluate on the clients, or open an exported model with the key"
            )
        self._session, self._checkpoints, self._history = None, None, History()
        self._form = None
        self.reports.clear()
        self._deadline, self._started = timeout, True
        grid = StreamingGrid(grid)
        rounds = Rounds(
            grid,
            num_rounds,
            timeout,
            ConfigRecord() if train_config is None else train_config,
            ConfigRecord() if evaluate_config is None else evaluate_config,
            None if evaluate_fn is None else self._noting(evaluate_fn),
        )
        if self.config.checkpoint_dir is not None:
            configs = config_of_start(train=train_config, evaluate=evaluate_config)
            self._checkpoints = Checkpoints(
                self.config, self.inner, {**self._app_config, **configs}
            )
        if self._checkpoints is not None and self.config.resume:
            result = self._resume(self._checkpoints, rounds, initial_arrays)
        else:
            if self._checkpoints is not None:
                self._checkpoints.claim()
            result = super().start(
                grid,
                initial_arrays,
                num_rounds,
                timeout,
                rounds.train_config,
                rounds.evaluate_config,
                rounds.evaluate_fn,
            )
        if self._session is not None and self.model.mask.k:
            result.arrays = to_record(self.model.visible())
        return result

    def _resume(
        self, checkpoints: Checkpoints, rounds: Rounds, initial_arrays: ArrayRecord
    ) -> Result:
        checkpoint = checkpoints.latest()
        run = self._new_session(initial_arrays)
        run.restore(checkpoint)
        self._session, done = run, checkpoint.progress.round
        self.summary()
        logger.info("resuming after round %d of %d", done, rounds.last)
        for report in checkpoint.progress.reports:
            self._keep(report)
        if done <= rounds.last:
            run.gather(done, rounds.grid)
        self._history = checkpoints.restore(checkpoint)
        arrays = go_on(self, rounds, to_record(run.model.plain), done)
        result = self._history.result()
        if run.model.round:  # as in Flower's result, nothing if no round had an answer
            result.arrays = arrays
        return result

    def _new_session(self, initial: ArrayRecord) -> Session:
        session = Session(self.config, self._weighted_by, self._emit, initial)
        session.deadline = self._deadline
        return session

    def _noting(self, evaluate_fn: EvaluateFn) -> EvaluateFn:
        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            metrics = evaluate_fn(server_round, arrays)
            if metrics is not None:
                self._history.central[server_round] = metrics
            return metrics

        return evaluate

    def summary(self) -> None:
        """Log what is encrypted and how, then the inner strategy's summary."""
        config, parameters = self.config, self.config.parameters
        logger.info(
            "SelectiveEncryption: policy %s, %s, CKKS %s (%d-bit security), %s maps",
            config.policy,
            f"ratio {config.effective_ratio:g}"
            if config.max_mb is None
            else f"at most {config.max_mb:g} MB",
            parameters.name,
            parameters.security_bits,
            config.maps,
        )
        if line := config.remainder_terms("0" * 32).policy().describe():
            logger.info("%s", line)
        self.inner.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Agree on key and mask where needed, then let the inner strategy sample clients.

        Raises:
            StrategyError: another strategy calls this one.
        """
        if self.config.encrypts and not self._started:
            raise StrategyError(
                "expected SelectiveEncryption to be the outermost strategy, got another around it, "
                "which would see a part of each model only and change that alone; call this one's "
                "start, and clip or add noise in a mod of the clients' train function"
            )
        if self._session is None:
            self._session = self._new_session(arrays)
        self._run.prepare(server_round, grid)
        messages = self.inner.configure_train(server_round, arrays, config, grid)
        return self._run.dress(messages, server_round, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add the ciphertexts and let the inner strategy average the rest of the same replies."""
        run = self._run
        up, answers = (0, 0), dict[int, Message]()
        updates = Updates(
            run.header(server_round),
            run.model.layout,
            run.mask,
            run.keys.fingerprint,
            withheld := run.withheld(),
            self._form,
        )
        errors = dict[int, Message]()
        for node, reply in run.attribute("train", server_round, replies):
            up = plus(up, size_of(reply.content)) if reply.has_content() else up
            if not run.mask.k or updates.take(node, reply):
                answers[node] = reply
            else:
                run.keys.forget(node)
                errors[node] = reply
        self._stop_if_refused("training", server_round, {**answers, **errors})
        ciphertext, contributors, seconds = None, None, dict[str, float]()
        if run.mask.k:
            answers, ciphertext, contributors = updates.result(run.run)
            self._form, seconds = updates.form, updates.seconds()
            self._learn(server_round, answers, contributors.weight if contributors else 0.0)
            if 0 < len(answers) < self.config.train_min_clients:
                self._warn_of_few(server_round, len(answers))
                answers = {}
        good = run.in_order(answers)
        arrays, metrics = self.inner.aggregate_train(server_round, good)
        if arrays is not None and not run.mask.k:
            run.replace_plain(arrays, server_round)
        elif arrays is not None and good:
            if withheld is not None:  # the same again, without what a mean of equals may round
                (arrays,) = withheld.array_records.values()
            run.replace(arrays, ciphertext, contributors, server_round)
        clients = sum(reply.has_content() for reply in good)
        report = run.report("train", server_round, clients, up, metrics, seconds, updates.refused)
        if metrics is not None:
            metrics.update(_as_metrics(report))
            self._history.train[server_round] = metrics
        if self._checkpoints is not None:
            self._checkpoints.save(server_round, run, self._history, self.reports)
        return arrays, metrics

    def _stop_if_refused(
        self, phase: str, server_round: int, answers: Mapping[int, Message]
    ) -> None:
        model = self._run.model
        if model.ciphertext is not None:
            what = f"{phase} of round {server_round}"
            stop_if_refused(answers, what, model.round, self.config.checkpoint_dir)

    def _warn_of_few(self, server_round: int, count: int) -> None:
        logger.warning(
            "round %d changes nothing: %d updates arrived, %d are needed; wait for more clients, "
            "or lower fedsens.train-min-clients if all accept so few (fedsens-min-contributors)",
            server_round,
            count,
            self.config.train_min_clients,
        )

    def _learn(self, server_round: int, answers: dict[int, Message], weight: float) -> None:
        for node, reply in answers.items():
            self._run.keys.learn(node, examples_of(reply.content, self._weighted_by))
        if answers and weight < SMALL_WEIGHT:
            logger.warning(
                "the answers carry %.2g of the examples announced for round %d, so the masked part "
                "is %.0f times less precise than stated",
                weight,
                server_round,
                1 / weight,
            )

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the inner strategy sample clients and give them what they need to open the model."""
        messages = self.inner.configure_evaluate(server_round, arrays, config, grid)
        return self._run.dress(messages, server_round, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Let the inner strategy average the metrics."""
        run = self._run
        answers = dict(run.attribute("evaluate", server_round, replies))
        contents = [reply.content for reply in answers.values() if reply.has_content()]
        errors = {node: reply for node, reply in answers.items() if reply.has_error()}
        self._stop_if_refused("evaluation", server_round, answers)
        for node, reply in errors.items():
            if reply.error.code == REFUSED:
                run.keys.forget(node)
        up = total(contents)
        good = [reply for reply in run.in_order(answers) if not reply.has_error()]
        for reply in good:
            reply.content.pop(HEADER, None)
        came = len(good)
        if run.mask.k:
            good = usable_metrics(good, self._weighted_by)
        metrics = self.inner.aggregate_evaluate(server_round, [*good, *errors.values()])
        if run.sent:
            refused = came - len(good)
            run.report("evaluate", server_round, len(good), up, metrics, {}, refused)
        if metrics is not None:
            self._history.evaluate[server_round] = metrics
        return metrics

    def _emit(self, report: PhaseReport) -> None:
        logger.info("%s", report, extra={FIGURES: report.model_dump()})
        self._keep(report)

    def _keep(self, report: PhaseReport) -> None:
        self.reports.append(report)
        if self._on_report is not None:
            self._on_report(report)


def _as_metrics(report: PhaseReport) -> dict[str, int | float]:
    numbers = report.model_dump(exclude={"phase", "round", "metrics"}, exclude_none=True)
    return {f"fedsens.{name.replace('_', '-')}": value for name, value in numbers.items()}
