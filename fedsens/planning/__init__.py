"""What a federation will cost, before anything runs.

Names are imported when first used, so that a command loads what it needs alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsens._lazy import attach

if TYPE_CHECKING:
    from fedsens.planning._calibrate import calibrate, predicted_memory, predicted_rounds
    from fedsens.planning._plan import (
        Budget,
        CostPlan,
        Federation,
        ModelSize,
        Speed,
        largest_plan,
        make_plan,
        plan_table,
        size_of_file,
        size_of_state,
    )

__all__ = [
    "Budget",
    "CostPlan",
    "Federation",
    "ModelSize",
    "Speed",
    "calibrate",
    "largest_plan",
    "make_plan",
    "plan_table",
    "predicted_memory",
    "predicted_rounds",
    "size_of_file",
    "size_of_state",
]

_HOMES = {
    "fedsens.planning._calibrate": ("calibrate", "predicted_memory", "predicted_rounds"),
    "fedsens.planning._plan": (
        "Budget",
        "CostPlan",
        "Federation",
        "ModelSize",
        "Speed",
        "largest_plan",
        "make_plan",
        "plan_table",
        "size_of_file",
        "size_of_state",
    ),
}
__getattr__, __dir__ = attach(__name__, _HOMES, __all__)
