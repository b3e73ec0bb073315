"""summary.json: a run in figures, from its reports and its protected model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from fedsens.protocol.model import ProtectedModel
from fedsens.protocol.report import PhaseReport
from fedsens.simulation.runner import RunOutcome


class Bytes(BaseModel):
    """Payload in bytes, all clients together."""

    model_config = ConfigDict(frozen=True)

    plain: int
    encrypted: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.plain + self.encrypted


class RoundRow(BaseModel):
    """One round: training and evaluation together.

    Attributes:
        round: from 1.
        accuracy: federated accuracy after the round, None if the app reports none.
        loss: federated loss, likewise.
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
    accuracy: float | None
    loss: float | None
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
        accuracy: per round.
        bytes_up: of all phases of the run.
        bytes_down: likewise.
        seconds: wall seconds by phase, and ``total`` with all start-up.
        per_round: one row per round.
    """

    model_config = ConfigDict(frozen=True)

    status: str
    rounds: int
    ratio: float
    parameters: int
    encrypted_parameters: int
    accuracy: list[float | None]
    bytes_up: Bytes
    bytes_down: Bytes
    seconds: dict[str, float]
    per_round: list[RoundRow]


class SimulationSummary(RunSummary):
    """The encrypted run, the same run at ratio 0, and where things lie.

    Attributes:
        baseline: the run at ratio 0, None if it was not asked for.
        model_sha256: of the opened model; None at ratio 0.
        clients_agreeing: clients whose own record of the final model has the same digest.
        folder: where the run's files are.
    """

    baseline: RunSummary | None
    model_sha256: str | None
    clients_agreeing: int
    folder: Path


def summarize(outcome: RunOutcome, model: ProtectedModel) -> RunSummary:
    """Sum up a run.

    Args:
        outcome: the run.
        model: its final model.

    Returns:
        The summary.
    """
    seconds: dict[str, float] = defaultdict(float)
    for report in outcome.reports:
        seconds[report.phase] += report.seconds
    rows = [_row(r, outcome.reports) for r in sorted({x.round for x in outcome.reports})]
    return RunSummary(
        status=outcome.status,
        rounds=len(rows),
        ratio=model.mask.ratio,
        parameters=model.layout.size,
        encrypted_parameters=model.mask.k,
        accuracy=[row.accuracy for row in rows],
        bytes_up=_up(outcome.reports),
        bytes_down=_down(outcome.reports),
        seconds={**seconds, "total": outcome.seconds},
        per_round=rows,
    )


def _row(number: int, reports: Iterable[PhaseReport]) -> RoundRow:
    phases = {report.phase: report for report in reports if report.round == number}
    parts = [phases[name] for name in ("train", "evaluate") if name in phases]
    train = phases.get("train") or parts[0]
    metrics = parts[-1].metrics
    return RoundRow(
        round=number,
        accuracy=metrics.get("accuracy"),
        loss=metrics.get("loss"),
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
