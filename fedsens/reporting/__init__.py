"""One HTML page of runs, studies and experiments.

Names are imported when first used, so that a command loads what it needs alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedsens._lazy import attach

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

_HOMES = {
    "fedsens.reporting._page": ("cards", "page", "picture"),
    "fedsens.reporting._sections": ("result_sections", "run_section"),
}
__getattr__, __dir__ = attach(__name__, _HOMES, __all__)
