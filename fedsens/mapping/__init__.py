"""``fedsens map``: from names and paths to a sensitivity map, and what it says.

Names are imported when first used, so that a command loads what it needs alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsens._imports import attach

if TYPE_CHECKING:
    from fedsens.mapping._figure import draw_map
    from fedsens.mapping._job import MapJob, make_map
    from fedsens.mapping._layers import conclusion, layer_table
    from fedsens.mapping._model import build_model, load_weights

__all__ = [
    "MapJob",
    "build_model",
    "conclusion",
    "draw_map",
    "layer_table",
    "load_weights",
    "make_map",
]

__getattr__, __dir__ = attach(__name__, __file__, __all__)
