"""The parts of a page: a run of ``fedsens simulate``, studies of leakage, and experiments."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.table import Table

from fedsens.errors import ConfigurationError
from fedsens.protocol import ProtectedModel, load_protected
from fedsens.reporting._page import cards, folded, picture, small_print
from fedsens.simulation import RunSummary, SimulationSummary, tables
from fedsens.tables import make_table, to_html

FEW_ROWS = 12  # that are shown without being asked for
STUDY_FILE = "audit.json"  # what fedsens audit leaves, beside its tables and pictures
PICTURES = {
    "leakage.png": "What the strongest attack recovers under each mask",
    "sheet.png": "What attacks recover, image by image",
}
TABLES = {"audit.csv": "Attacks", "labels.csv": "Labels", "presence.csv": "Presence of an image"}


def run_section(folder: Path) -> tuple[str, str]:
    """Key figures, curves, rounds, comparison, and which layers are encrypted.

    Args:
        folder: of the run.

    Returns:
        Title and HTML.

    Raises:
        ConfigurationError: there is no summary of a run.
    """
    path = folder / "summary.json"
    try:
        summary = SimulationSummary.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ConfigurationError(
            f"expected the summary of a run in {path}, got {type(error).__name__}; give a folder "
            "that fedsens simulate has written"
        ) from None
    parts = [cards(_figures(summary))]
    if (folder / "curves.png").exists():
        parts.append(picture(folder / "curves.png", "Accuracy, traffic and time of the run"))
    parts += map(to_html, tables(summary, summary.baseline))
    if (folder / "protected.safetensors").exists():
        parts.append(to_html(_layers(load_protected(folder / "protected.safetensors"))))
    return f"Run {folder.resolve().name}", "".join(parts)


def _figures(summary: SimulationSummary) -> list[tuple[str, str]]:
    share = f"{summary.ratio:.3g}"
    figures = [
        (summary.status.removeprefix("finished:"), "status"),
        (share, f"ratio: {summary.encrypted_parameters:,} of {summary.parameters:,} parameters"),
    ]
    if summary.opens == "server":
        figures.append(("server", "opens the mean of each round, and nobody's update"))
    if summary.probed_maps:
        figures.append((f"{summary.probed_maps}", "maps estimated from random probes, unbiased"))
    if summary.scores[-1] is not None:
        figures.append((f"{summary.scores[-1]:.4f}", f"{summary.metric} after the last round"))
    base = summary.baseline
    if base is not None:
        if base.scores[-1] is not None:
            figures.append((f"{base.scores[-1]:.4f}", "the same at ratio 0"))
        own, plain = (_per_round(run) for run in (summary, base))
        for name, one, other in zip(("up", "down"), own, plain, strict=True):
            text = f"bytes {name} per round, of those at ratio 0"
            figures.append((f"{one / other:.2f}x", text))
    if summary.model_sha256 is not None:
        clients = str(summary.clients_agreeing)
        figures.append((clients, "clients evaluated the final model; all have opened the same"))
    return figures


def _per_round(summary: RunSummary) -> tuple[float, float]:
    rows = summary.per_round
    up = sum(row.bytes_up.total for row in rows) / len(rows)
    return up, sum(row.bytes_down.total for row in rows) / len(rows)


def _layers(model: ProtectedModel) -> Table:
    counts = {entry.name: int(model.mask.of(entry).sum()) for entry in model.layout.entries}
    rows = [
        (
            entry.name,
            f"{entry.size:,}",
            f"{counts[entry.name]:,}",
            f"{counts[entry.name] / entry.size:.1%}" if entry.size else "-",
        )
        for entry in model.layout.entries
    ]
    return make_table(
        ("tensor", "parameters", "encrypted", "share"),
        rows,
        title="What is encrypted",
        caption=f"Mask {model.mask.digest[:16]}, CKKS {model.parameters.name}, "
        f"{model.parameters.security_bits}-bit security of what is encrypted; the plaintext "
        "remainder of a ratio below 1 is not protected.",
    )


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
        elif path.name == STUDY_FILE:
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
    parts.append(
        folded(f"{len(rows)} rows", to_html(_rows_table(rows)), unfolded=len(rows) <= FEW_ROWS)
    )
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


def _rows_table(rows: Iterable[Mapping[str, Any]]) -> Table:
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
