"""The speed of this machine, and what a plan by it says about federations that were measured."""

from __future__ import annotations

import torch

from fedsens.bench import RoundReport, ScaleRow, measure_round, measuring_rounds
from fedsens.crypto import CkksParameters, Opens
from fedsens.mask import mask_count
from fedsens.planning._plan import (
    CostPlan,
    Federation,
    Speed,
    client_memory,
    make_plan,
    server_memory,
)

CLIENTS, SMALL, LARGE = 2, 2**12, 2**19


def calibrate(preset: str = "precise", repeats: int = 3, opens: Opens = "clients") -> Speed:
    """Measure rounds of a small and a large model at ratio 0, 0.5 and 1, in a few CPU seconds.

    Args:
        preset: of the codec.
        repeats: rounds of each; the median counts.
        opens: who opens the sums.

    Returns:
        CPU seconds per client and per parameter.
    """

    def seconds(size: int, ratio: float) -> float:
        state = {"weight": torch.randn(size, generator=torch.Generator().manual_seed(0)) / 20}
        row = measure_round(f"ratio {ratio:g}", ratio, state, CLIENTS, repeats, preset, opens)
        return row.seconds / CLIENTS

    with measuring_rounds():
        client, whole_small = seconds(SMALL, 0.0), seconds(SMALL, 1.0)
        plain, half, whole = (seconds(LARGE, ratio) for ratio in (0.0, 0.5, 1.0))
    more = LARGE - SMALL
    return Speed(
        client=client,
        keys=max(0.0, whole_small - client),
        plain=max(0.0, plain - client) / more,
        encrypted=max(0.0, whole - whole_small) / more,
        split=max(0.0, half - (plain + whole) / 2) / LARGE,
    )


def predicted_rounds(report: RoundReport, preset: str, repeats: int) -> dict[str, CostPlan]:
    """Plan the rounds of a benchmark, after a calibration on this machine.

    Args:
        report: the measured rounds.
        preset: of the codec.
        repeats: rounds of the calibration; the median counts.

    Returns:
        Name of a row under selective encryption to its plan.
    """
    rows = [row for row in report.rows if row.ratio is not None]
    codec = CkksParameters.preset(preset)
    federations = {
        opens: Federation(
            report.parameters,
            report.clients,
            1,
            codec,
            calibrate(preset, repeats, opens),
            link=1e8,
            opens=opens,
        )
        for opens in dict.fromkeys(row.opens for row in rows)
    }
    return {row.name: make_plan(federations[row.opens], row.ratio or 0.0) for row in rows}


def predicted_memory(row: ScaleRow) -> tuple[int, int]:
    """Bytes of the server's and of a client's process that are planned for a federation.

    Args:
        row: the federation.

    Returns:
        Both.
    """
    size, count = row.parameters, mask_count(row.ratio or 0.0, row.parameters)
    return server_memory(size, count, row.clients), client_memory(size, count)
