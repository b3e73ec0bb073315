"""SelectiveEncryption: the server half, a strategy that wraps a strategy."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedsens.config import OUTPUT_DIR, FedSensConfig
from fedsens.errors import PhaseError, ProtocolError, StrategyError, SumError
from fedsens.flower._checkpoints import (
    Checkpoints,
    EvaluateFn,
    Metrics,
    StartArguments,
    config_of_start,
    resume_rounds,
)
from fedsens.flower._grid import StreamingGrid
from fedsens.flower._groups import RoundUpdates, least_groups
from fedsens.flower._inner import InnerStrategy
from fedsens.flower._logs import tell
from fedsens.flower._metrics import SummedMetrics
from fedsens.flower._phase import Phase
from fedsens.flower._records import (
    HEADER,
    LIST_REFUSED,
    MODEL_REFUSED,
    REFUSED,
    examples_of,
    to_record,
)
from fedsens.flower._state import ServerState
from fedsens.flower._updates import (
    Constants,
    EmptyRounds,
    RecordSchema,
    RoundResult,
    Updates,
    schema_of,
    usable_metrics,
)
from fedsens.protocol import Phase as PhaseName
from fedsens.protocol import PhaseReport, ProtectedModel, ReportFile, save_protected
from fedsens.remainder import DELTA, Account, PrivacyLoss, epsilon_of

logger = logging.getLogger(__name__)

NAMELESS = "0" * 32  # an experiment, where only the terms matter
OPENED = MODEL_REFUSED, LIST_REFUSED  # refusals by a client that has its key
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
        output_dir: str | os.PathLike[str] | None = None,
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
            output_dir: folder for ``reports.jsonl`` and, in the end, ``protected.safetensors``;
                the environment variable ``FEDSENS_OUTPUT_DIR`` takes precedence.
        """
        self.inner = strategy
        self.config = config or FedSensConfig()
        options = self.config.encrypts, weighted_mean, self.config.opens, self.config.groups
        self._inner = InnerStrategy(strategy, *options)
        self.reports: list[PhaseReport] = []
        self._on_report = on_report
        folder = os.environ.get(OUTPUT_DIR) or output_dir  # whoever starts a simulation looks there
        self._output = Path(folder) if folder else None
        self._report_file: ReportFile | None = None
        self._app_config = app_config or {}
        self._checkpoints: Checkpoints | None = None
        self._metrics = Metrics()
        self._deadline = math.inf
        self._started = False
        self._state: ServerState | None = None
        self._grid: Grid | None = None
        self._phase: Phase | None = None
        self._spent = PrivacyLoss()
        self._asks = True  # whether the strategy wants answers in this round
        self._schema: RecordSchema | None = None
        self._initial = ArrayRecord()
        self._empty_rounds = EmptyRounds(self.config.max_empty_rounds)

    @property
    def model(self) -> ProtectedModel:
        """The global model in split form, for export; ProtocolError before the first round."""
        return self._run.model

    @property
    def _run(self) -> ServerState:
        if self._state is None:
            raise ProtocolError("expected a run that has begun, got none; start the strategy")
        return self._state

    @property
    def _asked(self) -> Phase:
        if self._phase is None:
            raise ProtocolError("expected messages that were configured here, got none")
        return self._phase

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float | None = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
        **further: Any,
    ) -> Result:
        """Run the federation, as :meth:`flwr.serverapp.strategy.Strategy.start` does.

        Args:
            grid: Flower's grid.
            initial_arrays: the initial model, known to the server.
            num_rounds: rounds to run.
            timeout: deadline of each train and evaluate phase in seconds; None for no deadline.
            train_config: configuration for the clients' train function.
            evaluate_config: configuration for the clients' evaluate function.
            evaluate_fn: only where the server knows the model: with ratio 0, or ``opens`` server.
            further: what the start of the installed Flower takes besides, such as the
                ``should_stop`` of 1.43; handed on as it is.

        Returns:
            Flower's result.

        Raises:
            ConfigurationError: the number of rounds or the deadline is none.
            StrategyError: ``evaluate_fn`` is given, but the server will not know the model; nothing
                is trained, but something is to be encrypted; or a
                resumed run is given what only Flower's own start understands.
            PhaseError: no round changed the model, or too many in a row did not.
        """  # noqa: DOC502 - raised by StartArguments, _check_start and _conclude
        grid = StreamingGrid(grid)
        rounds = StartArguments(
            grid,
            num_rounds,
            timeout,
            ConfigRecord() if train_config is None else train_config,
            ConfigRecord() if evaluate_config is None else evaluate_config,
            None if evaluate_fn is None else self._recorded_evaluate(evaluate_fn),
        )
        self._check_start(evaluate_fn, further)
        self._central(None)  # whose package may be missing
        self._state, self._checkpoints, self._metrics = None, None, Metrics()
        self._schema, self._empty_rounds = None, EmptyRounds(self.config.max_empty_rounds)
        self.reports.clear()
        self._spent = PrivacyLoss()
        if self._output is not None:
            self._report_file = ReportFile(self._output / "reports.jsonl")
        self._deadline, self._started = math.inf if timeout is None else timeout, True
        if self.config.checkpoint_dir is not None:
            configs = config_of_start(train=train_config, evaluate=evaluate_config)
            self._checkpoints = Checkpoints(
                self.config, self.inner, {**self._app_config, **configs}
            )
        if self._checkpoints is not None and self.config.resume:
            result = self._resume(self._checkpoints, rounds, initial_arrays)
        else:
            if self._checkpoints is not None:
                self._checkpoints.create_folder()
                self._open_account(self.config.checkpoint_dir)
            # Flower keeps the initial model for the whole run. What it keeps is this copy of the
            # record, which is emptied once messages hold a model of this strategy's own.
            self._initial = ArrayRecord(dict(initial_arrays))
            del initial_arrays
            result = super().start(
                grid,
                self._initial,
                num_rounds,
                timeout,  # type: ignore[arg-type] # Flower hands it on, and None is no deadline
                rounds.train_config,
                rounds.evaluate_config,
                rounds.evaluate_fn,
                **further,
            )
        self._conclude(result, num_rounds)
        return result

    def _check_start(self, evaluate_fn: EvaluateFn | None, further: Mapping[str, Any]) -> None:
        """Refuse what a start cannot do, as :meth:`start` says."""
        if evaluate_fn is not None and self.config.encrypts and not self.config.server_opens:
            raise StrategyError(
                "expected no evaluate_fn, because the server does not know masked parameters, got "
                "one; evaluate on the clients, or open an exported model with the key"
            )
        if self.config.encrypts and getattr(self.inner, "fraction_train", 1.0) <= 0:
            raise StrategyError(
                "expected a strategy that trains, because clients do not evaluate the initial "
                "model in an encrypted run, got fraction_train 0; raise it, or set fedsens.ratio "
                "to 0"
            )
        if further and self.config.resume:
            raise StrategyError(
                f"expected no {', '.join(further)} for a resumed run, whose rounds Flower's own "
                "start does not run, got it; leave it out, or begin a run without fedsens.resume"
            )

    def _conclude(self, result: Result, num_rounds: int) -> None:
        """Keep the final model, if any round changed it, and say what of it Flower's result has."""
        trains = getattr(self.inner, "fraction_train", 1.0) > 0  # else it evaluates only
        if self._state is not None and trains and not self.model.round:
            raise PhaseError(
                f"expected a round that changed the model, got none of {num_rounds}: "
                f"{self._empty_rounds.why}; mend this, or raise the number of rounds"
            )
        if self._state is not None and self._output is not None:
            save_protected(self.model, self._output / "protected.safetensors")
        if self._state is not None and self.model.mask.k:
            result.arrays = to_record(self.model.visible())
            logger.warning(
                "result.arrays has NaN at the %d of %d parameters that the server does not know; "
                "save it by fedsens.protocol.save_protected(strategy.model, path), and open that "
                "with fedsens open where the key is",
                self.model.mask.k,
                self.model.mask.size,
            )

    def _resume(
        self, checkpoints: Checkpoints, rounds: StartArguments, initial_arrays: ArrayRecord
    ) -> Result:
        checkpoint = checkpoints.latest()
        run = self._new_state(initial_arrays)
        run.restore(checkpoint)
        self._state, done = run, checkpoint.progress.round
        self.summary()
        tell(logger, "resuming after round %d of %d", done, rounds.last)
        for report in checkpoint.progress.reports:
            self._keep(report)
        self._open_account(self.config.checkpoint_dir)
        if done <= rounds.last:
            run.wait_for_key_holders(done, rounds.grid)
        self._metrics = checkpoints.restore(checkpoint)
        arrays = resume_rounds(self, rounds, to_record(run.model.plain), done)
        result = self._metrics.result()
        if run.model.round:  # as in Flower's result, nothing if no round had an answer
            result.arrays = arrays
        return result

    def _new_state(self, initial: ArrayRecord) -> ServerState:
        return ServerState(self.config, self._inner.weighted_by, self._emit, initial)

    def _recorded_evaluate(self, evaluate_fn: EvaluateFn) -> EvaluateFn:
        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            metrics = evaluate_fn(server_round, arrays)
            if metrics is not None:
                self._metrics.central[server_round] = metrics
            return metrics

        return evaluate

    def summary(self) -> None:
        """Log what is encrypted and how, then the inner strategy's summary."""
        config, parameters = self.config, self.config.parameters
        tell(
            logger,
            "SelectiveEncryption: policy %s, %s, CKKS %s (%d-bit security), %s maps, opened by the "
            "%s",
            config.policy,
            f"ratio {config.effective_ratio:g}"
            if config.max_mb is None
            else f"at most {config.max_mb:g} MB",
            parameters.name,
            parameters.security_bits,
            config.maps,
            config.opens,
        )
        if (terms := config.central_privacy) is not None:
            tell(
                logger,
                "central differential privacy: every update is clipped to %g, noise multiplier %g "
                "of a mean of %d, epsilon %.3g a round of so many (delta %g)",
                terms.clip,
                terms.noise,
                terms.shares,
                epsilon_of([terms.noise]),
                DELTA,
            )
        if told := config.remainder_terms(NAMELESS).policy().describe():
            tell(logger, "%s", told)
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
        if self._state is None:
            self._state = self._new_state(arrays)
        self._run.prepare(server_round, grid, self._inner.told(config))
        shown = self._inner.shown(arrays, self._run.model)
        messages = list(self.inner.configure_train(server_round, shown, config, grid))
        self._asks = bool(messages)
        return self._prepare("train", messages, server_round, grid)

    def _prepare(
        self, name: PhaseName, messages: list[Message], server_round: int, grid: Grid
    ) -> list[Message]:
        run, own = self._run, False
        if self.config.encrypts:
            own = self._inner.keep_its_model(messages, run.model, self.config.opens)
        ready, self._phase = run.prepare_messages(name, messages, server_round, grid, own)
        self._grid = grid
        if self._run.mask.k and not self.config.server_opens:
            self._initial.clear()
        for message in ready:  # else a slow node would work through a backlog
            message.metadata.ttl = min(message.metadata.ttl, self._deadline)
        return ready

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Add the ciphertexts and let the inner strategy average the rest of the same replies."""
        run, phase = self._run, self._asked
        if not run.mask.k:
            return self._aggregate_plain(server_round, dict(phase.replies(replies)))
        stand_in = run.stand_in()
        record = None if stand_in is None else RecordDict({self._inner.record: to_record(stand_in)})
        updates = self._add_updates(phase, replies, record)
        back = self._judge(phase)
        results, search = ([], True) if back else self._round_results(updates, server_round)
        clients = sum(len(each.replies) for each in results)
        constants = Constants(run.model, results)
        if self.config.server_opens:
            good = self._opened(results)
            arrays, metrics = self.inner.aggregate_train(server_round, good)
            if arrays is not None and good:
                constants.restore(arrays)
                run.replace_opened(arrays, server_round)
        else:
            (result,) = results or [RoundResult({})]
            good = self._inner.even(phase.sort_by_request(result.replies), "train")
            arrays, metrics = self._inner.average(server_round, good, run.model.layout, run.mask)
            if arrays is not None and good and result.aggregate is not None:
                constants.restore(arrays)
                if record is not None:  # the same again, without what a mean of equals may round
                    (arrays,) = record.array_records.values()
                run.replace(arrays, result.aggregate, server_round, result.replies)
        self._finish_training(server_round, clients, metrics, updates)
        reasons = {**phase.reasons(), **updates.reasons}
        # Usable are answers too that are too few, or without their keys.
        first = updates.schema is None and not run.model.round
        if self._asks:
            why = run.why_void() or self._why_none(arrays, good)
            self._empty_rounds.count(server_round, clients, reasons, first, why, search=search)
        return arrays, metrics

    def _opened(self, results: list[RoundResult]) -> list[Message]:
        """The replies with what the server opened in the place of what was encrypted.

        Where there are groups, each is one reply with the means of its clients.
        """
        run, replies = self._run, list[Message]()
        for result in results:
            members = self._inner.even(self._asked.sort_by_request(result.replies), "train")
            if result.mean is not None:
                self._inner.fill_in(members, result.mean, run.model.layout, run.mask)
            replies += [self._inner.joined(members)] if self.config.groups > 1 else members
        return self._inner.even(replies, "train")

    def _aggregate_plain(
        self, server_round: int, answers: dict[int, Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """A round in which nothing is encrypted: the inner strategy's alone, bit for bit."""
        good = self._asked.sort_by_request(answers)
        arrays, metrics = self.inner.aggregate_train(server_round, good)
        if arrays is not None:
            self._run.replace_plain(arrays, server_round)
        clients = sum(reply.has_content() for reply in good)
        self._finish_training(server_round, clients, metrics)
        first = not self._run.model.round
        if self._asks:
            reasons = self._asked.reasons()
            why = self._run.why_void() or self._why_none(arrays, good)
            search = self._run.searching
            self._empty_rounds.count(server_round, clients, reasons, first, why, search=search)
        return arrays, metrics

    def _why_none(self, arrays: ArrayRecord | None, replies: Iterable[Message]) -> str:
        """What the inner strategy is to blame for, if it makes no model of answers; else ""."""
        if arrays is not None or not any(reply.has_content() for reply in replies):
            return ""
        return f"aggregate_train of {type(self.inner).__name__} returned no model"

    def _add_updates(
        self, phase: Phase, replies: Iterable[Message], stand_in: RecordDict | None
    ) -> RoundUpdates:
        """Add the updates as they arrive; what does not count is left out by name."""
        run = self._run
        updates: RoundUpdates | None = None
        for node, reply in phase.replies(replies):
            if updates is None:  # now the messages have been sent, so the run is known
                updates = self._new_updates(phase, stand_in)
            if updates.take(node, reply):
                run.keys.update_examples(node, examples_of(reply.content, self._inner.weighted_by))
            elif node not in phase.refused(*OPENED):
                run.keys.invalidate(node)
            if phase.model_is_safe(self.config.train_min_clients):
                run.accept()  # now, as the model before it takes memory beside the sum
        return updates or self._new_updates(phase, stand_in)

    def _new_updates(self, phase: Phase, stand_in: RecordDict | None) -> RoundUpdates:
        run = self._run
        shared = run.model.layout, run.mask, run.keys.parties, stand_in, self._schema
        return RoundUpdates(phase, lambda part: Updates(part, *shared), self._spend)

    def _round_results(
        self, updates: RoundUpdates, server_round: int
    ) -> tuple[list[RoundResult], bool]:
        """What the round came to, by group, and whether it is part of a search for a spoiler.

        Nothing where it is void, and the model then stays.
        """
        config, run, search = self.config, self._run, False
        assert self._grid is not None
        results = updates.results(self._grid, config.train_min_clients, config.key_timeout)
        run.note_keys(server_round, updates.gave, updates.withheld)
        connected = len(list(self._grid.get_node_ids()))
        for error in updates.void:
            if isinstance(error, SumError):
                search |= run.suspect(error.refused, connected)
        if updates.void and not results:
            run.changes_nothing(server_round, str(updates.void[0]))
            return [], search
        for result in results:
            if result.mean is not None:
                run.opened(result.replies)
            _warn_of_weight(server_round, result)
        self._schema = updates.schema
        if config.groups > 1:
            return self._enough_groups(results, server_round), search
        if 0 < (came := len(results[0].replies)) < config.train_min_clients:
            run.changes_nothing(
                server_round,
                f"{came} updates arrived, {config.train_min_clients} are needed; wait for more "
                "clients, or lower fedsens.train-min-clients if all accept so few "
                "(fedsens-min-contributors)",
            )
            return [], search
        return results, search

    def _enough_groups(self, results: list[RoundResult], server_round: int) -> list[RoundResult]:
        """The groups whose means the strategy can compare; nothing where they are too few."""
        usable = [
            result
            for result in results
            if result.mean is not None
            and schema_of(next(iter(result.replies.values())).content) == self._schema
        ]
        needed = least_groups(self.inner)
        if len(usable) < needed:
            self._run.changes_nothing(
                server_round,
                f"{len(usable)} of {self.config.groups} groups came to a mean, and "
                f"{type(self.inner).__name__} needs {needed}; see in the log why the others did "
                "not, or raise fedsens.groups",
            )
            return []
        return usable

    def _finish_training(
        self,
        server_round: int,
        clients: int,
        metrics: MetricRecord | None,
        updates: RoundUpdates | None = None,
    ) -> None:
        """Report the round, and save it."""
        report = self._asked.report(
            clients,
            refused=updates.refused if updates else 0,
            metrics=metrics,
            epsilon=self._run.terms.policy().epsilon(server_round),
            seconds=updates.seconds() if updates else None,
            reasons=updates.reasons if updates else None,
            encrypted=self._run.mask.k,
            central=self._central(updates),
            warnings=self._misstated(),
        )
        self._emit(report)
        if metrics is not None:
            self._metrics.train[server_round] = metrics
        if self._checkpoints is not None:
            self._checkpoints.save(server_round, self._run, self._metrics, self.reports)

    def _misstated(self) -> list[str]:
        """What is told once of numbers of examples that are not those of training."""
        wrong = self._run.keys.misstated
        if not wrong:
            return []
        node, (announced, trained) = min(wrong.items())
        others = f", and {len(wrong) - 1} more nodes likewise" if len(wrong) > 1 else ""
        text = (
            f"node {node} announced {announced} examples and trained on {trained}{others}; "
            "examples in install() must return what training reports as "
            f"{self._inner.weighted_by}, because maps are weighted by it"
        )
        logger.warning("%s", text)
        wrong.clear()
        return [text]

    def _central(self, updates: RoundUpdates | None) -> tuple[float | None, float | None]:
        """Noise multiplier of the mean, and epsilon so far; None without central privacy."""
        terms, spent = self.config.central_privacy, self._spent.rho
        if terms is None:
            return None, None
        contributors = updates.contributors if updates else 0
        multiplier = terms.multiplier(contributors) if contributors else None
        return multiplier, epsilon_of([(2 * spent) ** -0.5] if spent else [])

    def _spend(self, contributors: int) -> None:
        """Account for a mean from the moment that its keys are asked for, whatever comes of it.

        Where the run can be resumed the account is a file, since a round whose mean was opened may
        never get into a checkpoint.
        """
        if (terms := self.config.central_privacy) is not None:
            self._account_for(terms.cost(contributors))

    def _open_account(self, folder: Path | None) -> None:
        """Begin with what the folder's account says, or the reports where they say more."""
        if folder is None or self.config.central_privacy is None:
            return
        told = [each.noise_multiplier for each in self.reports if each.noise_multiplier]
        reported = math.fsum(multiplier**-2 / 2 for multiplier in told)
        self._spent = Account(folder).spent()
        if math.isclose(self._spent.rho, reported):
            return
        if self._spent.rho < reported:
            self._account_for(PrivacyLoss(answers=len(told), rho=reported - self._spent.rho))
            return
        logger.warning(
            "central privacy: %d means were asked for under %s, %d of them in rounds that are "
            "saved; all count",
            self._spent.answers,
            folder,
            len(told),
        )

    def _account_for(self, cost: PrivacyLoss) -> None:
        if self.config.checkpoint_dir is None:
            self._spent = self._spent.plus(cost)
        else:
            self._spent = Account(self.config.checkpoint_dir).spend(cost)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the inner strategy sample clients and give them what they need to open the model."""
        shown = self._inner.shown(arrays, self._run.model)
        messages = list(self.inner.configure_evaluate(server_round, shown, config, grid))
        if self.config.encrypts and not self.model.round:
            logger.warning(
                "round %d evaluates nothing: no round has changed the initial model yet, which "
                "clients do not evaluate in an encrypted run",
                server_round,
            )
            messages = []
        return self._prepare("evaluate", messages, server_round, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Let the inner strategy average the metrics."""
        run, phase = self._run, self._asked
        answers = dict(phase.replies(replies))
        back = bool(phase.sent) and self._judge(phase)
        for node in phase.refused(REFUSED):
            run.keys.invalidate(node)
        good = [reply for reply in phase.sort_by_request(answers) if not reply.has_error()]
        for reply in good if self.config.metrics == "plain" else ():
            reply.content.pop(HEADER, None)
        came = len(good)
        if run.mask.k and self.config.metrics == "summed":
            good = self._summed_metrics(phase, answers)
        if run.mask.k:
            usable = usable_metrics(good, self._inner.weighted_by)
            good = self._inner.even(usable, "evaluate")
        metrics = self.inner.aggregate_evaluate(server_round, [*good, *phase.errors.values()])
        if phase.sent:
            self._emit(phase.report(len(good), refused=came - len(good), metrics=metrics))
        if metrics is not None:
            self._metrics.evaluate[server_round] = metrics
        if back and self._checkpoints is not None:  # else a resumed run would begin from it
            self._checkpoints.save(server_round, run, self._metrics, self.reports)
        return metrics

    def _summed_metrics(self, phase: Phase, answers: Mapping[int, Message]) -> list[Message]:
        """The answers with the mean of all in the place of their own metrics; none without keys."""
        run, config = self._run, self.config
        assert self._grid is not None
        summed = SummedMetrics(phase, run.keys.parties, config.train_min_clients)
        for node, reply in answers.items():
            if reply.has_content():
                summed.take(node, reply.content)
        try:
            good = summed.replies(self._grid, config.key_timeout, answers)
        except SumError as error:
            logger.warning("round %d has no metrics: %s", phase.round, error)
            run.suspect(error.refused, len(list(self._grid.get_node_ids())))
            return []
        run.note_keys(phase.round, summed.gave, summed.withheld, "evaluate")
        return good

    def _judge(self, phase: Phase) -> bool:
        """Whether the clients refuse the model, and the run went back to the last accepted one."""
        if not phase.model_is_refused(self.config.train_min_clients):
            if phase.accepted >= min(2, self.config.train_min_clients):  # one's word is none
                self._run.accept()
            return False
        assert self._grid is not None
        connected = len(list(self._grid.get_node_ids()))
        lists = 2 * len(phase.refused(LIST_REFUSED)) > len(phase.refused(*OPENED))
        if lists or not self._run.go_back(connected):
            phase.stop(self.config.checkpoint_dir)
        return True

    def _emit(self, report: PhaseReport) -> None:
        tell(logger, "%s", report, **report.model_dump())
        self._keep(report)

    def _keep(self, report: PhaseReport) -> None:
        self.reports.append(report)
        if self._report_file is not None:
            self._report_file.append(report)
        if self._on_report is not None:
            self._on_report(report)


def _warn_of_weight(server_round: int, result: RoundResult) -> None:
    if result.replies and result.weight < SMALL_WEIGHT:
        logger.warning(
            "the answers carry %.2g of the examples announced for round %d, so the masked part "
            "is %.0f times less precise than stated",
            result.weight,
            server_round,
            1 / result.weight,
        )
