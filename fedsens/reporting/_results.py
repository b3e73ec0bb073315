"""The parts of a page that are about results in a folder: experiments, and studies of leakage."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from rich.table import Table

from fedsens.errors import ConfigurationError
from fedsens.reporting._page import conclusion, folded, picture, small_print
from fedsens.tables import make_table, to_html

FEW = 12  # rows that are shown without being asked for
STUDY = "audit.json"  # what fedsens audit leaves, beside its tables and pictures
VERDICT = "recommend.json"
CONCLUSION = re.compile(r"^\*\*In short:\*\* (.+?)(?:\n\n|\Z)", re.M | re.S)
MARKS = str.maketrans("", "", "*`")
PICTURES = {
    "leakage.png": "What the strongest attack recovers under each mask",
    "recommend.png": "What each protection leaks above a guess",
    "sheet.png": "What attacks recover, image by image",
}
TABLES = {
    "audit.csv": "Attacks",
    "labels.csv": "Labels",
    "membership.csv": "Membership of an image",
}


def result_sections(folder: Path) -> list[tuple[str, str]]:
    """A section for each study and each experiment under a folder, such as ``experiments``.

    Args:
        folder: searched with all of its subfolders.

    Returns:
        Titles and HTML.

    Raises:
        ConfigurationError: there are no results.
    """
    sections: dict[str, list[Path]] = {}
    studies = []
    for path in sorted(folder.rglob("*.json")):
        if _content(path) is not None:
            sections.setdefault(_title(path), []).append(path)
        elif path.name == STUDY:
            studies.append((f"Audit {path.parent.resolve().name}", _study(path.parent)))
    if not sections and not studies:
        raise ConfigurationError(
            f"expected results under {folder}, got none; give the folder of a run (fedsens "
            "simulate), of a study (fedsens audit), or of experiments' results"
        )
    return [*((title, _experiment(files)) for title, files in sections.items()), *studies]


def _experiment(files: list[Path]) -> str:
    """Figure and rows of each file, and what the experiment's page concludes."""
    parts = []
    for path in files:
        heading = f"<h3>{escape(path.stem)}</h3>\n" if len(files) > 1 else ""
        parts.append(heading + _rows(path, _content(path) or {}))
    told = CONCLUSION.search(_readme(files[0]))
    text = _text_of(told[1]) if told else ""
    return "".join(parts) + conclusion(text[:1].upper() + text[1:])


def _text_of(markdown: str) -> str:
    """A paragraph without links, emphasis and line breaks."""
    return " ".join(re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", markdown).split()).translate(MARKS)


def _content(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    rows = content.get("rows") if isinstance(content, dict) else None
    usable = isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)
    return content if usable else None


def _readme(path: Path) -> str:
    page = path.parent.parent / "README.md"
    return page.read_text() if page.exists() else ""


def _title(path: Path) -> str:
    """The first line of the experiment's page, or else the file's name."""
    return _readme(path).split("\n", 1)[0].lstrip("# ").strip() or path.stem


def _rows(path: Path, content: Mapping[str, Any]) -> str:
    parts = []
    image = path.with_suffix(".png")
    if image.exists():
        parts.append(picture(image, f"{path.stem}, drawn from the rows below"))
    rows = content["rows"]
    parts.append(folded(f"{len(rows)} rows", to_html(_table(rows)), unfolded=len(rows) <= FEW))
    environment = content.get("environment", {})
    note = ", ".join(f"{name} {value}" for name, value in environment.items())
    return "".join(parts) + small_print(note)


def _study(folder: Path) -> str:
    parts = [picture(folder / n, text) for n, text in PICTURES.items() if (folder / n).exists()]
    for name, title in TABLES.items():
        if (folder / name).exists():
            with (folder / name).open(newline="") as file:
                header, *rows = list(csv.reader(file)) or [[]]
            if rows:
                parts.append(folded(title, to_html(make_table(header, rows))))
    return "".join(parts) + conclusion(_verdict(folder))


def _verdict(folder: Path) -> str:
    """What the audit said in the end."""
    try:
        return str(json.loads((folder / VERDICT).read_text())["verdict"])
    except (OSError, ValueError, KeyError, TypeError):
        return "The strongest attack counts, not the mean. What to choose: fedsens audit recommend."


def _table(rows: Iterable[Mapping[str, Any]]) -> Table:
    rows = [_flat(row) for row in rows]
    names = list(dict.fromkeys(name for row in rows for name in row))
    numbers = [all(isinstance(row.get(name, 0), int | float) for row in rows) for name in names]
    lines = [[_text(row.get(name)) for name in names] for row in rows]
    return make_table(names, lines, left=[i for i, number in enumerate(numbers) if not number])


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return flat


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
