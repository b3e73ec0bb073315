"""The speed of this machine, from rounds of a small model through the real strategy and mod."""

from __future__ import annotations

import torch

from fedsens.bench.round import measure_round, measuring_rounds
from fedsens.planning.plan import Speed

CLIENTS, SMALL, LARGE = 2, 2**12, 2**19


def calibrate(preset: str = "precise", repeats: int = 3) -> Speed:
    """Measure rounds of a small and a large model at ratio 0, 0.5 and 1, in a few CPU seconds.

    Args:
        preset: of the codec.
        repeats: rounds of each; the median counts.

    Returns:
        CPU seconds per client and per parameter.
    """

    def seconds(size: int, ratio: float) -> float:
        state = {"weight": torch.randn(size, generator=torch.Generator().manual_seed(0)) / 20}
        row = measure_round(f"ratio {ratio:g}", ratio, state, CLIENTS, repeats, preset)
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
