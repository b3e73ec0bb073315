"""``fedsens report``: runs, studies and experiments as one HTML page."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from fedsens.cli._common import console, named_errors


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="FOLDER...",
            help="Runs (runs/latest), studies of fedsens audit, results (experiments).",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The page.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Its title.")] = "fedsens report",
) -> None:
    """Write one self-contained HTML page of runs, studies and experiments."""
    from fedsens.reporting import page, result_sections, run_section

    with named_errors():
        sections: list[tuple[str, str]] = []
        for folder in folders:
            if (folder / "summary.json").exists():
                sections.append(run_section(folder))
            else:
                sections += result_sections(folder)
        made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        note = f"Made by fedsens {version('fedsens')} on {made}."
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page(title, note, sections))
    console.print(f"{out}: {', '.join(name for name, _ in sections)}", soft_wrap=True)
