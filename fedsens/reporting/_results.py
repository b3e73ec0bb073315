"""The parts of a page that are about results in a folder: experiments, and studies of leakage."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from fedsens.errors import ConfigurationError
from fedsens.reporting._page import folded, picture, small_print
from fedsens.tables import make_table, to_html

FEW = 12  # rows that are shown without being asked for
STUDY = "audit.json"  # what fedsens audit leaves, beside its tables and pictures
PICTURES = {
    "leakage.png": "What the strongest attack recovers under each mask",
    "sheet.png": "What attacks recover, image by image",
}
TABLES = {"audit.csv": "Attacks", "labels.csv": "Labels", "presence.csv": "Presence of an image"}


def result_sections(folder: Path) -> list[tuple[str, str]]:
    """A section for each study and each file of rows under a folder, such as ``experiments``.

    Args:
        folder: searched with all of its subfolders.

    Returns:
        Titles and HTML.

    Raises:
        ConfigurationError: there are no results.
    """
    sections = []
    for path in sorted(folder.rglob("*.json")):
        content = _content(path)
        if content is not None:
            sections.append((_title(path), _rows(path, content)))
        elif path.name == STUDY:
            sections.append((f"Audit {path.parent.resolve().name}", _study(path.parent)))
    if not sections:
        raise ConfigurationError(
            f"expected results under {folder}, got none; give the folder of a run (fedsens "
            "simulate), of a study (fedsens audit), or of experiments' results"
        )
    return sections


def _content(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    rows = content.get("rows") if isinstance(content, dict) else None
    usable = isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)
    return content if usable else None


def _title(path: Path) -> str:
    """The first line of the experiment's page, and the file's name if it has several files."""
    readme = path.parent.parent / "README.md"
    first = readme.read_text().split("\n", 1)[0] if readme.exists() else ""
    name = first.lstrip("# ").strip()
    siblings = [each for each in path.parent.glob("*.json") if _content(each) is not None]
    return f"{name}: {path.stem}" if name and len(siblings) > 1 else name or path.stem


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
    note = "What to choose: fedsens audit recommend. The strongest attack counts, not the mean."
    return "".join(parts) + small_print(note)


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
