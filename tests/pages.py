"""The blocks of the documentation's pages that a reader would run.

A page's blocks share one folder:

- ``python`` and ``toml`` that begin with ``# NAME`` are written to the file of that name;
- ``sh``, and an indented block whose first word is a command, then run in one bash that stops at an
  error;
- the other ``python`` runs last, all of a page in one process and one namespace.

A block after the comment ``<!-- run in tests/FILE.py -->`` needs other machines, an engine for
containers or much time: that test runs what it shows. At the top of a page, ``<!-- all run in
tests/FILE.py -->`` says so of all its blocks. ``<!-- not to run: REASON -->`` is for what cannot
run as shown, such as an excerpt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHELL = re.compile(r"(?:fedsens|flwr|python|pip|make|git|docker|export|flower-\w+|mkdir|ls)\s|KEY=")
FENCE = re.compile(r"```(\S*)[^\n]*\n(.*?)^\s*```", re.M | re.S)
INDENTED = re.compile(r"(?:^ {4}\S.*\n(?:^ {4,}.*\n|^\n(?= {4}))*)", re.M)
ELSEWHERE = re.compile(r"<!-- (run in|not to run:) ([^>]+?) -->\s*$")

ALL = re.compile(r"^<!-- all run in (\S+) -->$", re.M)


@dataclass(frozen=True)
class Block:
    """One block of a page.

    Attributes:
        line: where it begins.
        language: ``sh``, ``python`` or ``toml``.
        text: as a reader copies it.
        elsewhere: the test file that runs it, if it does not run with its page.
        why: why it cannot run at all.
    """

    line: int
    language: str
    text: str
    elsewhere: str | None = None
    why: str | None = None

    @property
    def file(self) -> str | None:
        """The file that it is the content of."""
        named = re.match(r"# ([\w/-]+\.(?:py|toml))\n", self.text)
        return named[1] if named else None


def pages() -> list[Path]:
    """Every page with its own text: the README, CONTRIBUTING, the docs and the experiments."""
    top = (ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md"))
    experiments = sorted((ROOT / "experiments").glob("*/README.md"))
    return [*top, *sorted((ROOT / "docs").rglob("*.md")), *experiments]


def blocks(page: str) -> Iterator[Block]:
    """The blocks of a page in their order.

    Args:
        page: its text.

    Yields:
        Those in a language that runs.
    """
    whole = ALL.search(page)
    for begin, language, text in sorted((*_fenced(page), *_indented(page))):
        marked = ELSEWHERE.search(page[:begin])
        kind, told = marked.groups() if marked else ("run in", whole and whole[1])
        elsewhere, why = (told, None) if kind == "run in" else (None, told)
        yield Block(page.count("\n", 0, begin) + 1, language, text, elsewhere, why)


def _fenced(page: str) -> Iterator[tuple[int, str, str]]:
    for match in FENCE.finditer(page):
        if match[1] in {"sh", "python", "toml"}:
            yield match.start(), match[1], match[2]


def _indented(page: str) -> Iterator[tuple[int, str, str]]:
    hidden = FENCE.sub(lambda match: re.sub(r"[^\n]", "-", match[0]), page)
    for match in INDENTED.finditer(hidden):
        text = re.sub(r"^ {4}", "", match[0], flags=re.M)
        before = hidden[: match.start()]
        if before.endswith("\n\n") and SHELL.match(text):
            yield match.start(), "sh", text
