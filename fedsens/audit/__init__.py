"""How much the plaintext remainder of an update leaks: attacks, metrics, and a study of masks.

Names are imported when first used, so that the command line starts without loading torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsens._imports import attach

if TYPE_CHECKING:
    from fedsens.audit._analytic import Imprinted
    from fedsens.audit._attack import (
        Attack,
        AttackBudget,
        AttackView,
        attack_names,
        get_attack,
        register_attack,
        view_of_gradient,
    )
    from fedsens.audit._clients import Case, FederatedTraining, Update
    from fedsens.audit._figure import draw_choices, draw_leakage, draw_sheet
    from fedsens.audit._membership import label_leaks, membership
    from fedsens.audit._metrics import (
        CONFIDENCE,
        identified,
        interval,
        occurring,
        prior_reconstruction,
        recall_and_precision,
        ssim,
    )
    from fedsens.audit._recommend import (
        Choice,
        cheapest_first,
        choices,
        cost_rank,
        real_trials,
        recommendation,
        recommended,
    )
    from fedsens.audit._record import Record, read_settings, run_trials
    from fedsens.audit._report import (
        Summary,
        audit_table,
        case_table,
        choice_table,
        inference_table,
        write_summary,
    )
    from fedsens.audit._study import AttackStudy
    from fedsens.audit._target import leaking_lenet, load_samples, mode_of
    from fedsens.audit._trial import (
        FULL_ENCRYPTION,
        PLAIN,
        WITHHELD,
        WORKS,
        Protection,
        Trial,
        protections_of,
        remainder_name,
        trials_of,
    )
    from fedsens.audit._verdict import VerdictRow, verdict, verdicts

__all__ = [
    "CONFIDENCE",
    "FULL_ENCRYPTION",
    "PLAIN",
    "WITHHELD",
    "WORKS",
    "Attack",
    "AttackBudget",
    "AttackStudy",
    "AttackView",
    "Case",
    "Choice",
    "FederatedTraining",
    "Imprinted",
    "Protection",
    "Record",
    "Summary",
    "Trial",
    "Update",
    "VerdictRow",
    "attack_names",
    "audit_table",
    "case_table",
    "cheapest_first",
    "choice_table",
    "choices",
    "cost_rank",
    "draw_choices",
    "draw_leakage",
    "draw_sheet",
    "get_attack",
    "identified",
    "inference_table",
    "interval",
    "label_leaks",
    "leaking_lenet",
    "load_samples",
    "membership",
    "mode_of",
    "occurring",
    "prior_reconstruction",
    "protections_of",
    "read_settings",
    "real_trials",
    "recall_and_precision",
    "recommendation",
    "recommended",
    "register_attack",
    "remainder_name",
    "run_trials",
    "ssim",
    "trials_of",
    "verdict",
    "verdicts",
    "view_of_gradient",
    "write_summary",
]

__getattr__, __dir__ = attach(__name__, __file__, __all__)
