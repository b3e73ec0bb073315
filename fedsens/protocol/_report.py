"""What a phase costs: PhaseReport, as measured, and the bytes of a round, as they will be."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from fedsens.crypto import CkksParameters, Opens
from fedsens.errors import ConfigurationError
from fedsens.layout import ParameterLayout
from fedsens.protocol._aggregate import KEY_BYTES

logger = logging.getLogger(__name__)

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
        warnings: what a user of the run should mend.
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
    warnings: list[str] = []

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
        """Add a report; on a full disk the file ends with the last one that was written whole."""
        with self._path.open("ab", buffering=0) as file:
            end = file.tell()
            line = report.model_dump_json().encode() + b"\n"
            try:
                whole = file.write(line) == len(line)
            except OSError:
                whole = False
            if not whole:
                file.truncate(end)
                logger.error(
                    "a report is not written, the run goes on: make room for %s", file.name
                )


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


FLOAT_BYTES = 4  # bytes of a plaintext float32 parameter
HEADER_BYTES = 1500  # bytes of headers and metrics of a message, about
LISTED_BYTES = 300  # bytes for each client of the cohort and of the list of contributors, about


def traffic(
    codec: CkksParameters,
    size: int,
    count: int,
    *,
    width: float = FLOAT_BYTES,
    buffers: int = 0,
    withheld: bool = False,
    clients: int = 10,
    opens: Opens = "clients",
) -> tuple[float, float]:
    """Bytes that one client sends and gets in a round of training.

    Args:
        codec: CKKS parameters.
        size: P.
        count: k, how many of them are encrypted.
        width: bytes of a plaintext parameter, the mean over the layout (:func:`mean_width`).
        buffers: bytes of the tensors that are no floating-point ones (``layout.buffer_bytes``).
        withheld: whether clients keep the others.
        clients: how many take part in a round.
        opens: who opens the sums; where the server does, the model comes back plain.

    Returns:
        Bytes up and bytes down, with the padded keys and the mask, which is one bit for each
        parameter; a mask of everything or of nothing is told by its digest alone.
    """
    padded = codec.blocks(count) * codec.degree
    visible = width * (size - count) + buffers + HEADER_BYTES
    keys = KEY_BYTES if count else 0
    listed = LISTED_BYTES * clients if count else 0
    mask = size / 8 if 0 < count < size else 0
    up = (HEADER_BYTES if withheld else visible) + padded * codec.bytes_per_parameter + keys
    if opens == "server":
        return up, width * size + buffers + HEADER_BYTES + mask + listed
    return up, visible + mask + padded * codec.bytes_per_parameter_down + keys + listed


def mean_width(layout: ParameterLayout) -> float:
    """Mean bytes of a floating-point parameter of a model, by its real types."""
    total = sum(entry.size * entry.itemsize for entry in layout.entries)
    return total / layout.size if layout.size else FLOAT_BYTES


def largest_count(size: int, block: int, fits: Callable[[int], bool], least: str = "more") -> int:
    """The largest number of encrypted parameters that fits.

    Costs grow with the number of ciphertexts, so the last of them is full: a number in between
    would cost as much.

    Args:
        size: P.
        block: values in a ciphertext.
        fits: whether a number is within the budget; whatever is less must fit too.
        least: the budget that plaintext needs, for the error.

    Returns:
        The number.

    Raises:
        ConfigurationError: not even none fits.
    """
    low, high = -1, -(-size // block)  # blocks that fit, and that are possible
    while low < high:
        middle = (low + high + 1) // 2
        if fits(min(size, middle * block)):
            low = middle
        else:
            high = middle - 1
    if low < 0:
        raise ConfigurationError(
            f"expected a budget in which plaintext fits, which needs {least}, got less; raise "
            "it, or take a smaller model"
        )
    return min(size, low * block)


def ratio_within(
    codec: CkksParameters,
    size: int,
    megabytes: float,
    *,
    width: float = FLOAT_BYTES,
    buffers: int = 0,
    withheld: bool = False,
    clients: int = 10,
    opens: Opens = "clients",
) -> float:
    """The largest ratio whose bytes fit.

    Args:
        codec: CKKS parameters.
        size: P.
        megabytes: of one client in one round, both ways.
        width: mean bytes of a plaintext parameter.
        buffers: bytes of the tensors that are no floating-point ones.
        withheld: whether clients keep what is not encrypted.
        clients: how many take part in a round.
        opens: who opens the sums.

    Returns:
        The ratio.

    Raises:
        ConfigurationError: no ciphertext fits.
    """

    def cost(count: int) -> float:
        return sum(
            traffic(
                codec,
                size,
                count,
                width=width,
                buffers=buffers,
                withheld=withheld,
                clients=clients,
                opens=opens,
            )
        )

    # With a wide plaintext type a ciphertext is smaller than what it replaces: the most that fits
    # need not have everything below it fit, so it is looked for from above.
    if cost(size) <= 1e6 * megabytes:
        return 1.0
    count = largest_count(
        size, codec.degree, lambda k: cost(k) <= 1e6 * megabytes, f"{cost(0) / 1e6:.4g} MB"
    )
    if not count:
        raise ConfigurationError(
            f"expected fedsens.max-mb to have room for one ciphertext beside {size} parameters, "
            f"got {megabytes:g} MB; raise it, or set fedsens.ratio to 0 to switch encryption off"
        )
    return count / size
