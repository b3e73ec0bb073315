"""Writes the numbers of docs/reliability.md from tests and results, see ``make docs``.

The cases of a test are its parameters, so what was tried is what the tests try. Inputs fuzzed have
a page of their own: see tests.fuzz.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.soak.summary import left_out, lines

from .e2e.fault_table import faults
from .fuzz import table as fuzz

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
RESULTS = ROOT / "experiments" / "soak" / "results" / "soak.json"


@dataclass(frozen=True)
class Area:
    """What is tried, and the test files that try it."""

    what: str
    files: tuple[str, ...]


AREAS = (
    Area(
        "wrong answers of a client, and clients that are lost: they are left out by name, and the "
        "model is the mean of the others",
        ("flower/test_hostile_answers.py", "flower/test_dropouts.py"),
    ),
    Area(
        "wrong messages of a server, and wrong requests of an app: the client answers with a named "
        "error and no record",
        ("flower/test_fail_closed.py", "flower/test_hostile_server.py"),
    ),
    Area(
        "key agreement and rotation with parties that lie or die",
        ("flower/test_agreement.py", "flower/test_rotation.py", "keys/test_store.py"),
    ),
    Area(
        "one upload for a round, one list for an upload: between threads and processes, and after "
        "a crash at every step",
        ("keys/test_records.py", "keys/test_records_races.py"),
    ),
    Area(
        "forged sums, tags, lists and key answers",
        ("keys/test_opening.py", "keys/test_pads.py", "keys/test_tags.py"),
    ),
    Area("damaged and forged ciphertexts", ("crypto/test_wire.py", "crypto/test_aggregator.py")),
    Area(
        "messages of a running federation changed at random, in both directions",
        ("flower/test_mutated_messages.py",),
    ),
    Area(
        "secrets, values and sensitivities searched for in everything that leaves a client, in "
        "what the server keeps, and in logs",
        ("flower/test_secrets.py", "flower/test_captured_messages.py"),
    ),
)


def page() -> str:
    """The page with the sums of now."""
    text = PAGE.read_text()
    for name, table in tables().items():
        begin, end = f"<!-- {name}: make docs -->\n", f"<!-- end of {name} -->\n"
        start, stop = text.index(begin) + len(begin), text.index(end)
        text = text[:start] + table + text[stop:]
    return text


def tables() -> dict[str, str]:
    """Every table by the name of its place."""
    return {
        "tests": _table(("what is tried", "tests", "cases", "where"), map(_sums, AREAS)),
        "faults": f"{len(faults())} faults, each with its outcome, are listed there.\n",
        "fuzzed": f"{fuzz.total()}\n",
        "soaks": _soaks(json.loads(RESULTS.read_text())["rows"]),
    }


def _sums(area: Area) -> tuple[str, str, str, str]:
    counts = [count for file in area.files for count in cases(file)]
    links = ", ".join(f"[{Path(file).stem}](../tests/{file})" for file in area.files)
    return area.what, f"{len(counts)}", f"{sum(counts)}", links


def cases(file: str) -> Iterator[int]:
    """How many cases each test of a file has.

    Args:
        file: below tests/.

    Yields:
        The product of the numbers of its parameters.
    """
    module = importlib.import_module(f"tests.{file.removesuffix('.py').replace('/', '.')}")
    for name, function in vars(module).items():
        if name.startswith("test_") and function.__module__ == module.__name__:
            yield _cases_of(function)


def _cases_of(function: Callable[..., Any]) -> int:
    marks = [m for m in getattr(function, "pytestmark", ()) if m.name == "parametrize"]
    return math.prod(len(list(mark.args[1])) for mark in marks)


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
    reasons = ", ".join(f"{name} {count}" for name, count in left_out(rows).items())
    columns = ["", *("" for _ in told)]
    return _table(columns, facts) + f"\nLeft out of a mean, times: {reasons}.\n"


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    columns = list(columns)
    all_rows = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in all_rows)
