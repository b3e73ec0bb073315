"""The parts of a page: one for a run of ``fedsens simulate``, several for results in a folder.

Results are those of experiments, and studies of leakage.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Mapping
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from rich.table import Table

from fedsens._tables import make_table, to_html
from fedsens.errors import ConfigurationError
from fedsens.protocol import ProtectedModel, load_protected
from fedsens.reporting._page import cards, conclusion, folded, picture, small_print
from fedsens.simulation import RunSummary, SimulationSummary, tables

T = TypeVar("T")


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
    parts.append(conclusion(_in_words(summary)))
    return f"Run {folder.resolve().name}", "".join(parts)


def _in_words(summary: SimulationSummary) -> str:
    """What encryption changed, and what it leaves open."""
    base, own = summary.baseline, summary.scores[-1]
    told = f"{summary.ratio:.1%} of the parameters were encrypted."
    if base is not None and own is not None and base.scores[-1] is not None:
        up, down = (
            one / two for one, two in zip(_per_round(summary), _per_round(base), strict=True)
        )
        told += (
            f" Beside ratio 0 the {summary.metric} differs by {abs(own - base.scores[-1]):.4f}, "
            f"with {up:.2f} times the bytes up and {down:.2f} times the bytes down."
        )
    if summary.encrypted_parameters < summary.parameters:
        told += " What the rest tells about the data: fedsens audit. In doubt choose ratio 1."
    return told


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
    if summary.central_epsilon is not None:
        text = "epsilon (delta 1e-5) of a client that was in every mean"
        figures.append((f"{summary.central_epsilon:.3g}", text))
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
    "audit.csv": "Attacks. score: 1 is all of it; excess: above a guess without any update; "
    "identified: share of the victims told from others; possible: the most of all that this "
    "allows for; works: finds what nothing encrypts; union: the best attack on each victim.",
    "labels.csv": "Labels. error: distance of the labels' shares, as the update tells them, from "
    "the true ones; uniform: that of a uniform guess, at which nothing was learned.",
    "membership.csv": "Membership of an image. auc: how well images of the batch are told from "
    "others; 0.5 is a coin's, at which nothing was learned.",
}


def result_sections(folder: Path) -> list[tuple[str, str]]:
    """A section for each study and each experiment under a folder, such as ``experiments``.

    Args:
        folder: searched with all of its subfolders.

    Returns:
        Titles and HTML.

    Raises:
        ConfigurationError: there are no results, or a study is damaged.
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
    _study_part(folder / STUDY, json.loads, dict)
    parts = [picture(folder / n, text) for n, text in PICTURES.items() if (folder / n).exists()]
    for name, text in TABLES.items():
        title, note = text.split(". ", 1)
        if (folder / name).exists():
            header, *rows = _study_part(folder / name, _same_columns, list) or [[]]
            if rows:
                table = to_html(make_table(header, rows))
                parts.append(folded(title, table + small_print(note)))
    return "".join(parts) + conclusion(_verdict(folder / VERDICT))


def _verdict(path: Path) -> str:
    """What the audit said in the end."""
    if not path.exists():
        return "The strongest attack counts, not the mean. What to choose: fedsens audit recommend."
    return _study_part(path, lambda text: json.loads(text)["verdict"], str)


def _study_part(path: Path, parse: Callable[[str], Any], kind: type[T]) -> T:
    """A file of a study, which is damaged if it is of another kind than the audit writes."""
    try:
        content = parse(path.read_text())
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        found = type(error).__name__
    else:
        if isinstance(content, kind):
            return content
        found = type(content).__name__
    raise ConfigurationError(
        f"expected what fedsens audit writes in {path}, got {found}; run the study again, which "
        "goes on from the trials in audit.jsonl"
    )


def _same_columns(text: str) -> list[list[str]]:
    """The rows of a table in CSV."""
    rows = list(csv.reader(StringIO(text, newline="")))
    if any(len(row) != len(rows[0]) for row in rows):
        raise ValueError
    return rows


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
