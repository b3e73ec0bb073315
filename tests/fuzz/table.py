"""Writes the table in docs/reliability/fuzzing.md from fuzz.json, see ``make docs``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .targets import BY_NAME

DOCS = Path(__file__).parents[2] / "docs"
PAGE, RESULTS = DOCS / "reliability" / "fuzzing.md", DOCS / "reliability" / "fuzz.json"
BEGIN, END = "<!-- fuzz: from fuzz.json, python -m tests.fuzz.table -->\n", "<!-- end of fuzz -->\n"
HEAD = (
    "| parser | inputs | accepted | refused with | branches | new inputs kept | memory, at most | "
    "CPU s |\n|---|---|---|---|---|---|---|---|\n"
)


def write(results: dict[str, Any]) -> None:
    """Keep results and write the page with their table.

    Args:
        results: of ``tests.fuzz.run``; those of targets that did not run stay.
    """
    RESULTS.parent.mkdir(exist_ok=True)
    old = json.loads(RESULTS.read_text())["targets"] if RESULTS.exists() else {}
    targets = {**old, **results["targets"]}
    ordered = {name: targets[name] for name in BY_NAME if name in targets}
    RESULTS.write_text(json.dumps({**results, "targets": ordered}, indent=1) + "\n")
    PAGE.write_text(page())


def page() -> str:
    """The page with the table of the results that are kept."""
    text = PAGE.read_text()
    return text[: text.index(BEGIN)] + table() + text[text.index(END) + len(END) :]


def table() -> str:
    """The table, between its markers."""
    targets = json.loads(RESULTS.read_text())["targets"]
    rows = "".join(_row(name, result) for name, result in targets.items())
    return f"{BEGIN}{HEAD}{rows}\n{total()}\n{END}"


def total() -> str:
    """All inputs and the time they took, in a sentence."""
    targets = json.loads(RESULTS.read_text())["targets"]
    inputs = sum(result["inputs"] for result in targets.values())
    seconds = sum(result["cpu_seconds"] for result in targets.values())
    versions = ", ".join(sorted({f"`{result['version']}`" for result in targets.values()}))
    return (
        f"{inputs:,} inputs of {len(targets)} parsers in {seconds:,.0f} CPU seconds, of version "
        f"{versions} of the code (`python -m tests.fuzz.version` prints today's)."
    )


def _row(name: str, result: dict[str, Any]) -> str:
    outcomes = dict(result["outcomes"])
    accepted = outcomes.pop("accepted", 0)
    errors = sorted(outcomes.items(), key=lambda item: -item[1])
    refused = ", ".join(f"{error} {count:,}" for error, count in errors)
    cells = (
        BY_NAME[name].what,
        f"{result['inputs']:,}",
        f"{accepted:,}",
        refused,
        result.get("edges", "not measured"),
        result.get("corpus", "not measured"),
        f"{result['peak_bytes'] / 1024:,.0f} KiB",
        f"{result['cpu_seconds']:,.0f}",
    )
    return f"| {' | '.join(map(str, cells))} |\n"
