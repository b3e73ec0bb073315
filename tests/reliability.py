"""Writes the tables of docs/reliability.md from tests and results: ``make docs-reliability``.

The names of the tests are sentences, and the cases of a test are its parameters, so what was tried
is what the tests try. Inputs fuzzed have a section of their own: see tests.fuzz.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments.soak.summary import left_out, lines

from .e2e.fault_table import faults

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
RESULTS = ROOT / "experiments" / "soak" / "results" / "soak.json"
CLIENTS = ("flower/test_hostile_answers.py", "flower/test_dropouts.py", "crypto/test_tampered.py")
SERVERS = ("flower/test_fail_closed.py", "flower/test_hostile_server*.py")
SECRETS = ("flower/test_secrets.py", "flower/test_captured_messages.py")


def page() -> str:
    """The page with the tables of now."""
    text = PAGE.read_text()
    for name, table in tables().items():
        begin, end = f"<!-- {name}: make docs-reliability -->\n", f"<!-- end of {name} -->\n"
        start, stop = text.index(begin) + len(begin), text.index(end)
        text = text[:start] + table + text[stop:]
    return text


def tables() -> dict[str, str]:
    """Every table by the name of its place."""
    return {
        "faults": f"{len(faults())} faults.\n",
        "clients": _table(("what a client does", "cases", "what is said"), _tried(CLIENTS)),
        "servers": _table(("what a server does", "cases", "what is said"), _tried(SERVERS)),
        "soaks": _soaks(json.loads(RESULTS.read_text())["rows"]),
        "secrets": _table(("what holds", "cases"), (row[:2] for row in _tried(SECRETS))),
    }


def _tried(patterns: Iterable[str]) -> Iterable[tuple[str, str, str]]:
    folder = ROOT / "tests"
    for path in (found for pattern in patterns for found in sorted(folder.glob(pattern))):
        module = importlib.import_module(f"tests.{path.parent.name}.{path.stem}")
        for name, function in vars(module).items():
            if name.startswith("test_") and function.__module__ == module.__name__:
                marks = [m for m in getattr(function, "pytestmark", ()) if m.name == "parametrize"]
                cases = math.prod(len(list(mark.args[1])) for mark in marks)
                link = f"[{_sentence(name)}](../{path.relative_to(ROOT)})"
                yield link, str(cases), "; ".join(_said(marks))


def _sentence(name: str) -> str:
    return name.removeprefix("test_").replace("_", " ")


def _said(marks: Iterable[Any]) -> list[str]:
    """What refusals of the cases say: parameters named text or error."""
    said = dict[str, None]()
    for mark in marks:
        names = mark.args[0]
        names = [n.strip() for n in names.split(",")] if isinstance(names, str) else list(names)
        for index in (i for i, name in enumerate(names) if name in {"text", "error"}):
            for case in mark.args[1]:
                values = getattr(case, "values", case)
                value = values[index] if len(names) > 1 else values
                said[getattr(value, "__name__", str(value))] = None
    return [f"`{each}`" for each in said if "|" not in each and "`" not in each]


def _soaks(rows: list[dict[str, Any]]) -> str:
    names = dict.fromkeys((row["soak"], row["clients"]) for row in rows)
    runs = {
        f"{clients} clients, {soak}": [
            r for r in rows if (r["soak"], r["clients"]) == (soak, clients)
        ]
        for soak, clients in names
    }
    told = [lines(name, own) for name, own in runs.items()]
    facts = ([line[0][0], *(each[1] for each in line)] for line in zip(*told, strict=True))
    reasons = ([name, str(count)] for name, count in left_out(rows).items())
    columns = ["", *("" for _ in told)]
    return _table(columns, facts) + "\n" + _table(("left out of a mean", "times"), reasons)


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    columns = list(columns)
    all_rows = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in all_rows)


if __name__ == "__main__":
    PAGE.write_text(page())
