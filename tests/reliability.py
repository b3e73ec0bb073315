"""Writes the tables of docs/reliability.md from tests and results: ``make docs-reliability``.

The names of the tests are sentences, and the cases of a test are its parameters, by name where they
have one, so what was tried is what the tests try. Inputs fuzzed have a section of their own: see
tests.fuzz.
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
AGREEMENT = ("flower/test_keys.py", "flower/test_rotation.py", "protocol/test_tags.py")
MUTATED = ("flower/test_mutated_messages.py",)
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
        "faults": _table(("what happens", "outcome"), ((f.event, f.outcome) for f in faults())),
        "clients": _table(("what a client does", "cases", "what is said"), _tried(CLIENTS)),
        "servers": _table(("what a server does", "cases", "what is said"), _tried(SERVERS)),
        "agreement": _table(("what holds", "cases", "what is said"), _tried(AGREEMENT)),
        "mutated": _table(("what holds", "cases", ""), _tried(MUTATED)),
        "soaks": _soaks(json.loads(RESULTS.read_text())["rows"]),
        "secrets": _table(("what holds", "cases"), (row[:2] for row in _tried(SECRETS))),
    }


def _tried(patterns: Iterable[str]) -> Iterable[tuple[str, str, str]]:
    """A row for each test, and below it one for each of its cases that has a name."""
    folder = ROOT / "tests"
    for path in (found for pattern in patterns for found in sorted(folder.glob(pattern))):
        module = importlib.import_module(f"tests.{path.parent.name}.{path.stem}")
        for name, function in vars(module).items():
            if name.startswith("test_") and function.__module__ == module.__name__:
                marks = [m for m in getattr(function, "pytestmark", ()) if m.name == "parametrize"]
                link = f"[{_sentence(name)}](../{path.relative_to(ROOT)})"
                named = [(mark, names) for mark in marks if (names := _names(mark))]
                count = math.prod(len(list(mark.args[1])) for mark in marks)
                yield link, str(count), "" if named else _said(marks)
                for mark, names in named:
                    each = str(count // len(names))
                    for case, values in zip(names, _values(mark), strict=True):
                        yield f"&nbsp;&nbsp;{case}", each, _quoted([values])


def _sentence(name: str) -> str:
    return name.removeprefix("test_").replace("_", " ")


def _names(mark: Any) -> list[str]:
    """The names of a test's cases: their ids, or the lies they are named after."""
    ids = mark.kwargs.get("ids", ())
    if ids and not callable(ids):
        return [str(each) for each in ids]
    return [_sentence(values["lie"]) for values in _values(mark) if "lie" in values]


def _values(mark: Any) -> list[dict[str, Any]]:
    """Parameter to value, for each case."""
    names = mark.args[0]
    names = [n.strip() for n in names.split(",")] if isinstance(names, str) else list(names)
    cases = mark.args[1] if len(names) > 1 else ((case,) for case in mark.args[1])
    return [dict(zip(names, case, strict=True)) for case in cases]


def _said(marks: Iterable[Any]) -> str:
    return _quoted(values for mark in marks for values in _values(mark))


def _quoted(cases: Iterable[dict[str, Any]]) -> str:
    """What refusals of the cases say: parameters named error and text."""
    said = dict[str, None]()
    for values in cases:
        for value in (values[name] for name in ("error", "text") if values.get(name)):
            said |= dict.fromkeys(getattr(value, "__name__", str(value)).split("|"))
    return "; ".join(f"`{each}`" for each in said if "`" not in each)


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
