"""The attacks that come with fedsens; importing this package registers them."""

from __future__ import annotations

from fedsens.audit.attacks import analytic, dlg, inverting, learned

__all__ = ["analytic", "dlg", "inverting", "learned"]
