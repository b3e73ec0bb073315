"""summary.json: a run in figures, from its reports and its protected model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, computed_field

from fedsens.crypto import Opens
from fedsens.protocol import PhaseReport, ProtectedModel
from fedsens.simulation._runner import RunOutcome


class Bytes(BaseModel):
    """Payload in bytes, all clients together."""

    model_config = ConfigDict(frozen=True)

    plain: int
    encrypted: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.plain + self.encrypted


class RoundSummary(BaseModel):
    """One round: training and evaluation together.

    Attributes:
        round: from 1.
        score: the run's metric after the round, None where it was not reported.
        metrics: all metrics that the inner strategy has aggregated.
        clients: updates in the average.
        lost: clients asked without a usable update.
        bytes_up: from clients.
        bytes_down: to clients.
        seconds: wall time of both phases.
        encrypt_seconds: CPU seconds of a client to encrypt (mean).
        decrypt_seconds: CPU seconds of a client to decrypt (mean).
        add_seconds: CPU seconds of the server to add.
    """

    model_config = ConfigDict(frozen=True)

    round: int
    score: float | None
    metrics: dict[str, float]
    clients: int
    lost: int
    bytes_up: Bytes
    bytes_down: Bytes
    seconds: float
    encrypt_seconds: float
    decrypt_seconds: float
    add_seconds: float


class RunSummary(BaseModel):
    """A whole run.

    Attributes:
        status: Flower's final status.
        rounds: number of rounds.
        ratio: encrypted share, as the mask has it.
        parameters: P.
        encrypted_parameters: k.
        opens: who opened the sums; None where nothing was encrypted.
        central_epsilon: what the means cost a client that was in all of them (delta 1e-5); None
            without central differential privacy.
        probed_maps: maps of clients that random probes estimated, without bias.
        metric: name of the metric that stands for the model's quality; None if the app reports
            none.
        bytes_up: of all phases of the run.
        bytes_down: likewise.
        seconds: wall seconds by phase, and ``total`` with all start-up.
        per_round: one row per round.
        warnings: what should be mended, and why clients were lost.
    """

    model_config = ConfigDict(frozen=True)

    status: str
    rounds: int
    ratio: float
    parameters: int
    encrypted_parameters: int
    opens: Opens | None = None
    central_epsilon: float | None = None
    probed_maps: int = 0
    metric: str | None
    bytes_up: Bytes
    bytes_down: Bytes
    seconds: dict[str, float]
    per_round: list[RoundSummary]
    warnings: list[str] = []

    @property
    def scores(self) -> list[float | None]:
        """The metric of every round."""
        return [row.score for row in self.per_round]

    @computed_field  # type: ignore[prop-decorator]  # of pydantic, on a property
    @property
    def accuracy(self) -> list[float | None]:
        """The accuracy of every round; None where the metric is no accuracy."""
        known = self.metric is not None and is_accuracy(self.metric)
        return self.scores if known else [None] * self.rounds


class SimulationSummary(RunSummary):
    """The encrypted run, the same run at ratio 0, and where things lie.

    Attributes:
        baseline: the run at ratio 0, None if it was not asked for.
        model_sha256: of the opened model; None at ratio 0.
        clients_agreeing: clients that opened the final model, to evaluate it, and whose own record
            of it has the same digest.
        folder: where the run's files are.
    """

    baseline: RunSummary | None
    model_sha256: str | None
    clients_agreeing: int
    folder: Path


def is_accuracy(metric: str) -> bool:
    """Whether a metric is an accuracy by its name, such as ``eval_acc``."""
    return "acc" in metric.lower()


def choose_metric(names: Iterable[str], wanted: str | None = None) -> str | None:
    """The metric that stands for a model's quality, of those that there are, most telling first.

    It is the one that is wanted; else ``accuracy``, another accuracy, or the first that is no
    loss, or the first. None if there is none, or not the one that is wanted.
    """
    known = [name for name in dict.fromkeys(names) if name != "num-examples"]
    if wanted is not None:
        return wanted if wanted in known else None
    ranks = (
        [name for name in known if name == "accuracy"],
        [name for name in known if is_accuracy(name)],
        [name for name in known if "loss" not in name.lower()],
        known,
    )
    return next((rank[0] for rank in ranks if rank), None)


def summarize(outcome: RunOutcome, model: ProtectedModel, metric: str | None = None) -> RunSummary:
    """Sum up a run.

    Args:
        outcome: the run.
        model: its final model.
        metric: the metric to show, see :func:`choose_metric`.

    Returns:
        The summary.
    """
    seconds: dict[str, float] = defaultdict(float)
    for report in outcome.reports:
        seconds[report.phase] += report.seconds
    phases = sorted(outcome.reports, key=lambda report: report.phase != "evaluate")
    shown = choose_metric((name for report in phases for name in report.metrics), metric)
    rows = [_row(r, outcome.reports, shown) for r in sorted({x.round for x in outcome.reports})]
    # A model that the server opened is whole, though the answers were encrypted.
    told = [each.encrypted_parameters for each in outcome.reports if each.phase == "train"]
    costs = (each.central_epsilon for each in outcome.reports)
    spent = [cost for cost in costs if cost is not None]
    encrypted = max([model.mask.k, *told[-1:]])
    return RunSummary(
        status=outcome.status,
        rounds=len(rows),
        ratio=encrypted / model.layout.size if model.layout.size else 0.0,
        parameters=model.layout.size,
        encrypted_parameters=encrypted,
        central_epsilon=max(spent) if spent else None,
        opens=next((each.opens for each in outcome.reports if each.opens), None),
        probed_maps=sum(report.probed_maps for report in outcome.reports),
        metric=shown,
        bytes_up=_up(outcome.reports),
        bytes_down=_down(outcome.reports),
        seconds={**seconds, "total": outcome.seconds},
        per_round=rows,
        warnings=list(dict.fromkeys(each for report in outcome.reports for each in _told(report))),
    )


def _told(report: PhaseReport) -> Iterable[str]:
    """What a user should know of a phase; a reason that several clients give stands once."""
    yield from report.warnings
    for reason in dict.fromkeys(report.reasons.values()):
        nodes = sum(each == reason for each in report.reasons.values())
        yield (
            f"round {report.round} {report.phase}: {nodes} client{'s'[: nodes > 1]} lost: {reason}"
        )


def _row(number: int, reports: Iterable[PhaseReport], metric: str | None) -> RoundSummary:
    phases = {report.phase: report for report in reports if report.round == number}
    parts = [phases[name] for name in ("train", "evaluate") if name in phases]
    train = phases.get("train") or parts[0]
    metrics = {name: value for part in parts for name, value in part.metrics.items()}
    return RoundSummary(
        round=number,
        score=None if metric is None else metrics.get(metric),
        metrics=metrics,
        clients=train.clients,
        lost=train.lost,
        bytes_up=_up(parts),
        bytes_down=_down(parts),
        seconds=sum(part.seconds for part in parts),
        encrypt_seconds=train.encrypt_seconds,
        decrypt_seconds=train.decrypt_seconds,
        add_seconds=train.add_seconds,
    )


def _up(reports: Iterable[PhaseReport]) -> Bytes:
    pairs = [(report.bytes_up_plain, report.bytes_up_encrypted) for report in reports]
    return Bytes(plain=sum(p for p, _ in pairs), encrypted=sum(e for _, e in pairs))


def _down(reports: Iterable[PhaseReport]) -> Bytes:
    pairs = [(report.bytes_down_plain, report.bytes_down_encrypted) for report in reports]
    return Bytes(plain=sum(p for p, _ in pairs), encrypted=sum(e for _, e in pairs))
