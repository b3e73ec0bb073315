"""The numbers of examples that a round is planned with, and what an answer may weigh.

Masked values are encrypted times n_i / N_ref, N_ref being the sum of what the clients of a round
announce. One that announces far too many makes all others small: their values lose precision, and
in the end their tags no longer count. So what is far above the median is capped.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Final

from fedsens.errors import ProtocolError

USUAL: Final = 64  # times the median; numbers up to here stand as announced
ROOM: Final = 1024  # times the median, for all clients above together
# The weights of a round add up to one if clients train on what they announced; codec and mean stay
# sound a little beyond.
MOST_WEIGHT: Final = 2.0


def planned(announced: Mapping[int, int]) -> dict[int, int]:
    """Cap numbers of examples that are far above the others'.

    With the lower median m, a number above 64 m counts as at most 1024 m divided by how many such
    numbers there are, and as 64 m at least. At least half of the clients that announce any examples
    then have a weight of at least 1 / (64 n + 1024) in a round of n.

    Args:
        announced: node to number of examples, of all clients that hold the key.

    Returns:
        Node to number.
    """
    some = [examples for examples in announced.values() if examples > 0]
    if not some:
        return dict(announced)
    median = statistics.median_low(some)
    above = sum(examples > USUAL * median for examples in some)
    most = median * max(USUAL, ROOM // max(above, 1))
    return {node: min(examples, most) for node, examples in announced.items()}


def check_weight(weight: float) -> None:
    """Refuse an answer that weighs more than the whole round was planned to.

    Args:
        weight: examples / N_ref.

    Raises:
        ProtocolError: it does.
    """
    if weight > MOST_WEIGHT:
        raise ProtocolError(
            f"expected at most {MOST_WEIGHT:g} times the examples that all clients of the round "
            "announced together, got more; announce in install() what training counts"
        )
