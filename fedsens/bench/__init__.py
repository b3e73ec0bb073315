"""Benchmarks of fedsens's own code on the user's machine: the codec, maps, rounds, and their scale.

Names are imported when first used, so that a command loads what it needs alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsens._lazy import attach

if TYPE_CHECKING:
    from fedsens.bench._cases import chosen_cases
    from fedsens.bench._codec import bench_codec
    from fedsens.bench._map import bench_map, machine
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

_HOMES = {
    "fedsens.bench._codec": ("bench_codec",),
    "fedsens.bench._map": ("bench_map", "machine"),
    "fedsens.bench._cases": ("chosen_cases",),
    "fedsens.bench._round": (
        "RATIOS",
        "RoundReport",
        "bench_round",
        "measure_round",
        "measuring_rounds",
    ),
    "fedsens.bench._scale": ("CLIENTS", "PARAMETERS", "ScaleRow", "bench_scale"),
    "fedsens.bench._tables": ("codec_table", "map_table", "round_table", "scale_table"),
}
__getattr__, __dir__ = attach(__name__, _HOMES, __all__)
