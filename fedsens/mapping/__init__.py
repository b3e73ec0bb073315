"""``fedsens map``: from names and paths to a sensitivity map, and what it says.

Names are imported when first used, so that a command loads what it needs alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsens._lazy import attach

if TYPE_CHECKING:
    from fedsens.mapping._figure import draw_map
    from fedsens.mapping._job import MapJob, bytes_of, make_map, rows_of
    from fedsens.mapping._layers import Layer, MapReport
    from fedsens.mapping._model import build_model, load_weights
    from fedsens.mapping._screen import conclusion, layer_table

__all__ = [
    "Layer",
    "MapJob",
    "MapReport",
    "build_model",
    "bytes_of",
    "conclusion",
    "draw_map",
    "layer_table",
    "load_weights",
    "make_map",
    "rows_of",
]

_HOMES = {
    "fedsens.mapping._figure": ("draw_map",),
    "fedsens.mapping._job": ("MapJob", "bytes_of", "make_map", "rows_of"),
    "fedsens.mapping._layers": ("Layer", "MapReport"),
    "fedsens.mapping._model": ("build_model", "load_weights"),
    "fedsens.mapping._screen": ("conclusion", "layer_table"),
}
__getattr__, __dir__ = attach(__name__, _HOMES, __all__)
