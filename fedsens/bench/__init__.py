"""Benchmarks of fedsens's own code on the user's machine: the codec, maps, rounds, and their scale.

Names are imported when first used, so that a command loads what it needs alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsens._imports import attach

if TYPE_CHECKING:
    from fedsens.bench._codec import bench_codec
    from fedsens.bench._map import bench_map, chosen_cases, machine
    from fedsens.bench._round import (
        RATIOS,
        RoundReport,
        bench_round,
        measure_round,
        measuring_rounds,
    )
    from fedsens.bench._scale import CLIENTS, PARAMETERS, ScaleRow, bench_scale
    from fedsens.bench._tables import codec_table, map_table, round_table, scale_table

__all__ = [
    "CLIENTS",
    "PARAMETERS",
    "RATIOS",
    "RoundReport",
    "ScaleRow",
    "bench_codec",
    "bench_map",
    "bench_round",
    "bench_scale",
    "chosen_cases",
    "codec_table",
    "machine",
    "map_table",
    "measure_round",
    "measuring_rounds",
    "round_table",
    "scale_table",
]

__getattr__, __dir__ = attach(__name__, __file__, __all__)
