"""What a plan says about federations that a benchmark has measured."""

from __future__ import annotations

from fedsens.bench.round_rows import RoundReport
from fedsens.bench.scale import ScaleRow
from fedsens.crypto import CkksParameters
from fedsens.mask import mask_count
from fedsens.planning.calibrate import calibrate
from fedsens.planning.memory import client_memory, server_memory
from fedsens.planning.plan import Federation, Plan, make_plan


def predicted_rounds(report: RoundReport, preset: str, repeats: int) -> dict[str, Plan]:
    """Plan the rounds of a benchmark, after a calibration on this machine.

    Args:
        report: the measured rounds.
        preset: of the codec.
        repeats: rounds of the calibration; the median counts.

    Returns:
        Name of a row under selective encryption to its plan.
    """
    codec, speed = CkksParameters.preset(preset), calibrate(preset, repeats)
    federation = Federation(report.parameters, report.clients, 1, codec, speed, link=1e8)
    rows = (row for row in report.rows if row.ratio is not None)
    return {row.name: make_plan(federation, row.ratio or 0.0) for row in rows}


def predicted_memory(row: ScaleRow) -> tuple[int, int]:
    """Bytes of the server's and of a client's process that are planned for a federation.

    Args:
        row: the federation.

    Returns:
        Both.
    """
    size, count = row.parameters, mask_count(row.ratio or 0.0, row.parameters)
    return server_memory(size, count, row.clients), client_memory(size, count)
