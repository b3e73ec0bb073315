"""What a federation will cost, before anything runs.

Names are imported when first used, so that a command loads what it needs alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsens._imports import attach

if TYPE_CHECKING:
    from fedsens.planning._calibrate import calibrate, predicted_memory, predicted_rounds
    from fedsens.planning._plan import (
        Budget,
        Federation,
        ModelSize,
        largest_plan,
        make_plan,
        plan_table,
    )

__all__ = [
    "Budget",
    "Federation",
    "ModelSize",
    "calibrate",
    "largest_plan",
    "make_plan",
    "plan_table",
    "predicted_memory",
    "predicted_rounds",
]

__getattr__, __dir__ = attach(__name__, __file__, __all__)
