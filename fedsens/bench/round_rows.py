"""The figures of the round benchmark."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class RoundRow:
    """One round.

    Attributes:
        name: what ran.
        ratio: share of the parameters that is encrypted; None without fedsens.
        bytes_up_plain: plaintext bytes that one client sends.
        bytes_up_encrypted: ciphertext bytes that one client sends.
        bytes_down_plain: plaintext bytes that one client gets.
        bytes_down_encrypted: ciphertext bytes that one client gets.
        seconds: CPU seconds of the server and all clients, training left out.
    """

    name: str
    ratio: float | None
    bytes_up_plain: int
    bytes_up_encrypted: int
    bytes_down_plain: int
    bytes_down_encrypted: int
    seconds: float

    @property
    def bytes_up(self) -> int:
        """Bytes that one client sends."""
        return self.bytes_up_plain + self.bytes_up_encrypted

    @property
    def bytes_down(self) -> int:
        """Bytes that one client gets."""
        return self.bytes_down_plain + self.bytes_down_encrypted


@dataclass(frozen=True)
class RoundReport:
    """Rounds side by side.

    Attributes:
        model: its name.
        parameters: entries of its state, buffers included.
        clients: how many take part.
        images: how many a client trains on.
        training_seconds: CPU seconds of one client's training.
        rows: the rounds; the first is the baseline, without fedsens.
    """

    model: str
    parameters: int
    clients: int
    images: int
    training_seconds: float
    rows: tuple[RoundRow, ...]

    def ratios(self, row: RoundRow) -> dict[str, float]:
        """A round's costs relative to the baseline.

        Args:
            row: the round.

        Returns:
            ``up`` and ``down`` (bytes), ``both`` (their sum) and ``time`` (CPU, training included).
        """
        base, training = self.rows[0], self.clients * self.training_seconds
        return {
            "up": row.bytes_up / base.bytes_up,
            "down": row.bytes_down / base.bytes_down,
            "both": (row.bytes_up + row.bytes_down) / (base.bytes_up + base.bytes_down),
            "time": (training + row.seconds) / (training + base.seconds),
        }

    def content(self) -> dict[str, Any]:
        """The figures for a JSON file, relative ones included."""
        rows = [asdict(row) | {"relative": self.ratios(row)} for row in self.rows]
        return asdict(self) | {"rows": rows}
