"""How much the plaintext remainder of an update leaks: attacks, metrics, and a study of masks.

Names are imported when first used, so that the command line starts without loading torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsens._lazy import attach

if TYPE_CHECKING:
    from fedsens.audit._attack import (
        Attack,
        AttackView,
        Effort,
        attack_names,
        get_attack,
        register_attack,
        view_of_gradient,
    )
    from fedsens.audit._clients import Case, FederatedTraining, Update
    from fedsens.audit._figure import draw_choices, draw_leakage, draw_sheet
    from fedsens.audit._imprint import Imprinted
    from fedsens.audit._inputs import leaking_lenet, load_samples
    from fedsens.audit._membership import LabelLeak, Presence, label_leaks, membership
    from fedsens.audit._metrics import (
        CONFIDENCE,
        Interval,
        class_mean,
        identified,
        interval,
        occurring,
        recall_and_precision,
        ssim,
    )
    from fedsens.audit._recommend import (
        Choice,
        choices,
        real_trials,
        recommendation,
        recommended,
        walk,
    )
    from fedsens.audit._record import Record, read_settings, run_trials
    from fedsens.audit._report import (
        Summary,
        audit_table,
        case_table,
        choice_table,
        rest_table,
        write_summary,
    )
    from fedsens.audit._study import Study
    from fedsens.audit._target import mode_of
    from fedsens.audit._trial import (
        EVERYTHING,
        PLAIN,
        WITHHELD,
        WORKS,
        Outcome,
        Protection,
        Trial,
        protections_of,
        remainder_name,
        trials_of,
    )
    from fedsens.audit._verdict import Line, verdict, verdicts

__all__ = [
    "CONFIDENCE",
    "EVERYTHING",
    "PLAIN",
    "WITHHELD",
    "WORKS",
    "Attack",
    "AttackView",
    "Case",
    "Choice",
    "Effort",
    "FederatedTraining",
    "Imprinted",
    "Interval",
    "LabelLeak",
    "Line",
    "Outcome",
    "Presence",
    "Protection",
    "Record",
    "Study",
    "Summary",
    "Trial",
    "Update",
    "attack_names",
    "audit_table",
    "case_table",
    "choice_table",
    "choices",
    "class_mean",
    "draw_choices",
    "draw_leakage",
    "draw_sheet",
    "get_attack",
    "identified",
    "interval",
    "label_leaks",
    "leaking_lenet",
    "load_samples",
    "membership",
    "mode_of",
    "occurring",
    "protections_of",
    "read_settings",
    "real_trials",
    "recall_and_precision",
    "recommendation",
    "recommended",
    "register_attack",
    "remainder_name",
    "rest_table",
    "run_trials",
    "ssim",
    "trials_of",
    "verdict",
    "verdicts",
    "view_of_gradient",
    "walk",
    "write_summary",
]

_HOMES = {
    "fedsens.audit._attack": (
        "Attack",
        "AttackView",
        "Effort",
        "attack_names",
        "get_attack",
        "register_attack",
        "view_of_gradient",
    ),
    "fedsens.audit._clients": ("Case", "FederatedTraining", "Update"),
    "fedsens.audit._figure": ("draw_choices", "draw_leakage", "draw_sheet"),
    "fedsens.audit._imprint": ("Imprinted",),
    "fedsens.audit._inputs": ("leaking_lenet", "load_samples"),
    "fedsens.audit._membership": (
        "LabelLeak",
        "Presence",
        "label_leaks",
        "membership",
    ),
    "fedsens.audit._metrics": (
        "CONFIDENCE",
        "Interval",
        "class_mean",
        "identified",
        "interval",
        "occurring",
        "recall_and_precision",
        "ssim",
    ),
    "fedsens.audit._recommend": (
        "Choice",
        "choices",
        "real_trials",
        "recommendation",
        "recommended",
        "walk",
    ),
    "fedsens.audit._record": ("Record", "read_settings", "run_trials"),
    "fedsens.audit._report": (
        "Summary",
        "audit_table",
        "case_table",
        "choice_table",
        "rest_table",
        "write_summary",
    ),
    "fedsens.audit._study": ("Study",),
    "fedsens.audit._target": ("mode_of",),
    "fedsens.audit._trial": (
        "EVERYTHING",
        "PLAIN",
        "WITHHELD",
        "WORKS",
        "Outcome",
        "Protection",
        "Trial",
        "protections_of",
        "remainder_name",
        "trials_of",
    ),
    "fedsens.audit._verdict": ("Line", "verdict", "verdicts"),
}
__getattr__, __dir__ = attach(__name__, _HOMES, __all__)
