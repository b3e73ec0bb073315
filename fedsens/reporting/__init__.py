"""One HTML page of runs, studies and experiments.

Names are imported when first used, so that a command loads what it needs alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsens._imports import attach

if TYPE_CHECKING:
    from fedsens.reporting._page import cards, page, picture
    from fedsens.reporting._sections import result_sections, run_section

__all__ = [
    "cards",
    "page",
    "picture",
    "result_sections",
    "run_section",
]

__getattr__, __dir__ = attach(__name__, __file__, __all__)
