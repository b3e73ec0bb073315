"""Measures the table in docs/how-to/publish.md: ``python -m tests.protocol.flooding_table``."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from fedsens.crypto import CkksParameters, generate_key
from fedsens.protocol.flooding import MOST, Flooding, flood

from .sealed import protected

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "publish.md"
BEGIN, END = "<!-- measured: python -m tests.protocol.flooding_table -->\n", "<!-- end -->\n"
HEAD = (
    "| preset | values | clients | without noise | s = 20 | s = 30 | s = 40 |\n|"
    + "---|" * 7
    + "\n"
)
SIZES = ((1_000, 10), (100_000, 10))
RMS = 0.1


def bits(errors: np.ndarray) -> float:
    """Bits between the values' root mean square and that of their errors."""
    return math.log2(RMS / math.sqrt(float(errors @ errors) / errors.size))


def row(name: str, values: int, clients: int) -> str:
    """One row of the table, measured."""
    key = generate_key(CkksParameters.preset(name))
    exact = np.random.default_rng(0).normal(0, RMS, values)
    model = protected({"w": exact}, key, share=1.0, weight=1.0, summands=clients)
    opened = model.decrypt(key)
    cells = [f"{bits(opened - exact):.1f}"]
    for security in (20, 30, 40):
        noisy = flood(opened, model, Flooding(security_bits=security, accept=True))
        left = f"{bits(noisy.values - exact):.1f}"
        cells.append(left if noisy.share <= MOST else f"{left} (refused)")
    return f"| {name} | {values:,} | {clients} | {' | '.join(cells)} |\n"


def page() -> str:
    """The page with a table of now."""
    text = PAGE.read_text()
    presets = ("compact", "balanced", "precise")
    rows = "".join(row(name, *size) for name in presets for size in SIZES)
    return text[: text.index(BEGIN)] + BEGIN + HEAD + rows + text[text.index(END) :]


if __name__ == "__main__":
    PAGE.write_text(page())
