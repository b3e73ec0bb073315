"""Plain: the remainder leaves as it is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar

from fedsens.files import Arrays
from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask, partition
from fedsens.remainder._terms import Leaving, RemainderPolicy, register_remainder


@register_remainder
class Plain(RemainderPolicy):
    """The remainder leaves as it is, and the inner strategy averages it."""

    name: ClassVar = "plain"
    protection: ClassVar = 0
    needs_received: ClassVar = False
    needs_mask: ClassVar = False
    spoils_statistics: ClassVar = False

    def protect(
        self,
        before: Arrays | None,
        after: Arrays,
        mask: EncryptionMask,
        layout: ParameterLayout,
        server_round: int,
        folder: Path,
        max_epsilon: float = math.inf,
    ) -> Leaving:
        """Split the trained model; nothing is kept."""
        plain, masked = partition(after, mask, layout)
        return Leaving(plain, masked, commit=lambda: None)
