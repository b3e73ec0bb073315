"""Writes every table of the docs that is made from tests and results: ``make docs``."""

from __future__ import annotations

import re
import tomllib
from html import escape
from pathlib import Path

from experiments.benchmarks import readme

from . import reliability
from .e2e import fault_table
from .fuzz import table

ROOT = Path(__file__).parents[1]
BADGES = ROOT / "docs" / "images" / "badges.svg"


def badges() -> str:
    """The README's badges as one picture, which asks no server what pyproject.toml says."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = {re.split("[<>=]", each)[0]: each for each in project["dependencies"]}
    told = {
        "python": project["requires-python"],
        "flwr": needs["flwr"].removeprefix("flwr"),
        "license": project["license"],
    }
    left, parts = 0, []
    for name, value in told.items():
        for text, colour in ((name, "#444"), (value, "#27638f")):
            width = 8 * len(text) + 12
            parts.append(
                f'<rect x="{left}" width="{width}" height="20" fill="{colour}"/>'
                f'<text x="{left + 6}" y="14" textLength="{width - 12}">{escape(text)}</text>'
            )
            left += width
        left += 8
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{left}" height="20" fill="#fff"'
    return "\n".join((f'{head} font-family="monospace" font-size="13">', *parts, "</svg>\n"))


if __name__ == "__main__":
    for generator in (fault_table, table, reliability):
        generator.PAGE.write_text(generator.page())
    readme.update_readme()
    BADGES.write_text(badges())
