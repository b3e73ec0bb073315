"""The attacks that come with fedsens; importing this package registers them.

Cheap ones come first: what they recover no other has to.
"""

from __future__ import annotations

from fedsens.audit.attacks import analytic, imprint, tokens  # isort: skip
from fedsens.audit.attacks import learned  # isort: skip
from fedsens.audit.attacks import dlg, inverting  # isort: skip

__all__ = ["analytic", "dlg", "imprint", "inverting", "learned", "tokens"]
