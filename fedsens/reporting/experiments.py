"""The parts of a page that are about experiments: a figure and the rows it is drawn from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from fedsens.errors import ConfigurationError
from fedsens.reporting.page import folded, picture, small_print
from fedsens.tables import to_html

FEW = 12  # rows that are shown without being asked for


def experiment_sections(folder: Path) -> list[tuple[str, str]]:
    """A section for each file of rows under a folder, such as ``experiments``.

    Args:
        folder: searched with all of its subfolders.

    Returns:
        Titles and HTML.

    Raises:
        ConfigurationError: there are no experiments.
    """
    sections = []
    for path in sorted(folder.rglob("*.json")):
        content = _content(path)
        if content is not None:
            sections.append((_title(path), _section(path, content)))
    if not sections:
        raise ConfigurationError(
            f"expected results of experiments under {folder}, got none; run python -m "
            "experiments.NAME first"
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
    readme = path.parent.parent / "README.md"
    first = readme.read_text().split("\n", 1)[0] if readme.exists() else ""
    return first.lstrip("# ").strip() or path.stem


def _section(path: Path, content: Mapping[str, Any]) -> str:
    parts = []
    image = path.with_suffix(".png")
    if image.exists():
        parts.append(picture(image, f"{path.stem}, drawn from the rows below"))
    rows = content["rows"]
    parts.append(folded(f"{len(rows)} rows", to_html(_table(rows)), unfolded=len(rows) <= FEW))
    environment = content.get("environment", {})
    note = ", ".join(f"{name} {value}" for name, value in environment.items())
    return "".join(parts) + small_print(note)


def _table(rows: Iterable[Mapping[str, Any]]) -> Table:
    rows = [_flat(row) for row in rows]
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = Table()
    for name in names:
        number = all(isinstance(row.get(name, 0), int | float) for row in rows)
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        table.add_row(*(_text(row.get(name)) for name in names))
    return table


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return flat


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
