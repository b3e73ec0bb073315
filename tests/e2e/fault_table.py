"""Writes the table in docs/how-to/faults.md from the marked tests, see ``make docs``."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "faults.md"
BEGIN, END = "<!-- faults: from the tests, make docs -->\n", "<!-- end -->\n"


@dataclass(frozen=True)
class Fault:
    """One marked test, by its file and the rest of its name in words, which a table can wrap."""

    event: str
    outcome: str
    test: str


def faults() -> list[Fault]:
    """Every test that is marked with ``fault``, in the order of the files."""
    found = []
    for path in sorted(Path(__file__).parent.glob("test_faults*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                found += [_fault(call, path, node.name) for call in _marks(node)]
    return found


def _marks(node: ast.FunctionDef) -> list[ast.Call]:
    return [
        call
        for call in node.decorator_list
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.fault"
    ]


def _fault(call: ast.Call, path: Path, name: str) -> Fault:
    values = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    words = name.removeprefix("test_").replace("_", " ")
    return Fault(values["event"], values["outcome"], f"[{words}](../../tests/e2e/{path.name})")


def table() -> str:
    """The table, between its markers."""
    rows = [f"| {each.event} | {each.outcome} | {each.test} |\n" for each in faults()]
    head = "| what happens | outcome | test |\n|---|---|---|\n"
    return BEGIN + head + "".join(rows) + END


def page() -> str:
    """The page with the table of now."""
    text = PAGE.read_text()
    return text[: text.index(BEGIN)] + table() + text[text.index(END) + len(END) :]
