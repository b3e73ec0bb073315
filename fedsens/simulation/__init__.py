"""Flower simulations started, watched and summed up by ``fedsens simulate``.

Names are imported when first used, so that a command loads what it needs alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsens._imports import attach

if TYPE_CHECKING:
    from fedsens.simulation._app import FlowerApp
    from fedsens.simulation._figure import draw_curves
    from fedsens.simulation._runner import RunOptions, follow, submit
    from fedsens.simulation._screen import SimulationScreen, tables
    from fedsens.simulation._simulate import (
        check_options,
        configured,
        no_baseline,
        simulate,
        with_baseline,
    )
    from fedsens.simulation._summary import RunSummary, SimulationSummary, summarize

__all__ = [
    "FlowerApp",
    "RunOptions",
    "RunSummary",
    "SimulationScreen",
    "SimulationSummary",
    "check_options",
    "configured",
    "draw_curves",
    "follow",
    "no_baseline",
    "simulate",
    "submit",
    "summarize",
    "tables",
    "with_baseline",
]

__getattr__, __dir__ = attach(__name__, __file__, __all__)
