"""What a soak showed, from the rows of its rounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from experiments.cases import Row
from experiments.soak.schedule import NO_KEY

SETTLED = 100  # rounds until allocators and caches have what they need


def growth(rows: Sequence[Row]) -> float | None:
    """KiB of memory per round, by least squares over the rounds after the first 100 (or a fifth).

    Args:
        rows: of all rounds.

    Returns:
        The slope, None where the memory is unknown or there are fewer than two rounds.
    """
    late = rows[min(SETTLED, len(rows) // 5) :]
    if len(late) < 2 or any(row["MiB"] is None for row in late):
        return None
    slope = np.polyfit([row["round"] for row in late], [row["MiB"] for row in late], 1)[0]
    return float(slope) * 1024


def left_out(rows: Sequence[Row]) -> dict[str, int]:
    """How often each reason kept a client out of a mean, the most frequent first."""
    reasons = (reason for row in rows for reason in row["left out"].split("; ") if reason)
    return dict(Counter(reasons).most_common())


def worst(rows: Sequence[Row]) -> float:
    """The largest error of any round as a share of its bound."""
    return max(float(row["of bound"]) for row in rows)


def lines(name: str, rows: Sequence[Row]) -> list[tuple[str, str]]:
    """The summary as a person reads it.

    Args:
        name: of the soak.
        rows: of all rounds.

    Returns:
        What is stated, and the statement.
    """
    slope = growth(rows)
    marks = [n for n in (10, 100, len(rows)) if n <= len(rows)]
    memory = " / ".join(f"{rows[n - 1]['MiB']:.0f}" for n in marks) if slope is not None else ""
    count = sum(row["sampled"] for row in rows)
    kept = sum(row["in the mean"] for row in rows)
    seconds = np.median([row["CPU seconds"] for row in rows])
    return [
        ("soak", name),
        ("rounds", f"{len(rows)}"),
        ("answers asked for / in the means / left out", f"{count} / {kept} / {count - kept}"),
        (
            "rounds void for a key that did not come",
            f"{sum(NO_KEY in r['left out'] for r in rows)}",
        ),
        (
            "sums that one client spoilt / the round in which it was excluded for it",
            _spoilt(rows),
        ),
        ("rounds within the bound", f"{sum(row['of bound'] <= 1 for row in rows)}"),
        ("largest error, as a share of its bound", f"{worst(rows):.2f}"),
        (f"MiB after round {' / '.join(map(str, marks))}", memory),
        ("KiB more per round, later", "" if slope is None else f"{slope:.1f}"),
        ("CPU seconds per round, median", f"{seconds:.2f}"),
        ("accuracy after the last round", f"{rows[-1]['accuracy']:.3f}"),
    ]


def _spoilt(rows: Sequence[Row]) -> str:
    """Empty where nobody spoils sums."""
    if not (spoilt := sum(row["spoilt"] for row in rows)):
        return ""
    return f"{spoilt} / {next(row['round'] for row in rows if row['excluded'])}"
