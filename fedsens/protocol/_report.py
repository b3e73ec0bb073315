"""PhaseReport: what one phase of a run cost, for logs, summaries and metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from fedsens.crypto import Opens

#: What the server asks clients for.
Phase = Literal["keys", "rotate", "map", "mask", "train", "evaluate"]


class PhaseReport(BaseModel):
    """One phase of one round, as the server measured it.

    Bytes are payloads: parameters, ciphertexts, masks and headers, without the transport's own.

    Attributes:
        phase: which phase.
        round: the server round it belongs to.
        clients: usable answers.
        lost: nodes that were asked and gave no usable answer.
        refused: those of them whose answer the server left out as wrong.
        reasons: node to why it is lost, of some that said so.
        bytes_up_plain: plaintext bytes from clients.
        bytes_up_encrypted: ciphertext and padded key bytes from clients.
        bytes_down_plain: plaintext bytes to clients.
        bytes_down_encrypted: ciphertext and padded key bytes to clients.
        seconds: wall time from sending to the end of the aggregation.
        encrypt_seconds: CPU seconds to encrypt, mean over clients.
        decrypt_seconds: CPU seconds to decrypt, mean over clients.
        add_seconds: CPU seconds of the server to add ciphertexts.
        epsilon: differential privacy (delta 1e-5) of the plaintext remainder of a client that has
            answered once in every round so far; None where no budget can be stated.
        encrypted_parameters: of each answer with an update or a map.
        opens: who opens the sum of the uploads; None where nothing was encrypted.
        noise_multiplier: of the mean that could be opened, by the clients that were in it (the
            smallest of several groups'); None without central differential privacy.
        central_epsilon: what the means of the run so far cost a client that is in all of them
            (delta 1e-5).
        probed_maps: of the answers of a map phase, those that random probes estimated.
        metrics: the inner strategy's aggregated metrics.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    phase: Phase
    round: int
    clients: int
    lost: int = 0
    refused: int = 0
    reasons: dict[int, str] = {}
    bytes_up_plain: int = 0
    bytes_up_encrypted: int = 0
    bytes_down_plain: int = 0
    bytes_down_encrypted: int = 0
    seconds: float = 0.0
    encrypt_seconds: float = 0.0
    decrypt_seconds: float = 0.0
    add_seconds: float = 0.0
    epsilon: float | None = None
    encrypted_parameters: int = 0
    opens: Opens | None = None
    noise_multiplier: float | None = None
    central_epsilon: float | None = None
    probed_maps: int = 0
    metrics: dict[str, float] = {}

    def __str__(self) -> str:
        up = f"{self.bytes_up_plain:,} + {self.bytes_up_encrypted:,}"
        spent = self.central_epsilon
        down = f"{self.bytes_down_plain:,} + {self.bytes_down_encrypted:,}"
        return (
            f"round {self.round} {self.phase}: {self.clients} clients, {self.lost} lost, "
            f"up {up} B, down {down} B (plain + encrypted), {self.seconds:.2f} s"
            f"{', opened by the server' if self.opens == 'server' else ''}"
            f"{'' if spent is None else f', epsilon {spent:.3g} of the mean so far'}"
        )


class ReportFile:
    """Appends reports to a file, one JSON object per line, each written whole."""

    def __init__(self, path: Path) -> None:
        """Start with an empty file; its folder is created, what it held is dropped."""
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")

    def append(self, report: PhaseReport) -> None:
        """Add a report."""
        with self._path.open("a") as file:
            file.write(report.model_dump_json() + "\n")


def read_reports(path: Path) -> list[PhaseReport]:
    """Read a file of :class:`ReportFile`; a line that is still being written is left out.

    Args:
        path: the file; one that does not exist yet has no reports.

    Returns:
        The reports in order.
    """
    if not path.exists():
        return []
    whole = path.read_text().rpartition("\n")[0]
    return [PhaseReport.model_validate_json(line) for line in whole.splitlines()]
