"""What the commands share: options, and how errors and figures come out."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fedsens._extensions import load_extensions
from fedsens._imports import EXTRAS, install_line
from fedsens.errors import ConfigurationError, FedSensError

console = Console()

JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        envvar="FEDSENS_PASSPHRASE_FILE", help="File with the passphrase (mode 0600), not a prompt."
    ),
]


@contextmanager
def named_errors() -> Iterator[None]:
    """Show an error of fedsens, or an extra that is missing, as one sentence and exit with 1."""
    try:
        try:
            yield
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in EXTRAS:
                raise
            raise ConfigurationError(install_line(package, EXTRAS[package])) from error
    except FedSensError as error:
        Console(stderr=True).print(f"[bold red]{type(error).__name__}[/]: ", end="")
        Console(stderr=True, markup=False, highlight=False).print(error.with_notes, soft_wrap=True)
        raise typer.Exit(1) from None


def import_modules(modules: list[str] | None) -> list[str] | None:
    """Import what installed packages announce and what a user names; the folder is importable."""
    if modules and (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    with named_errors():
        load_extensions(modules or ())
    return modules


Imports = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        metavar="MODULE",
        is_eager=True,
        callback=import_modules,
        help="Import a module that registers a policy, loss, reader or attack; repeatable. The "
        "current folder is importable.",
    ),
]


def write_json(path: Path | None, content: Any) -> None:
    """Write figures to a file, if one was asked for."""
    if path is not None:
        path.write_text(json.dumps(content, indent=2) + "\n")


def passphrase_of(path: Path | None, confirm: bool = False) -> str:
    """The passphrase in a file, or from a prompt."""
    from fedsens.keys import read_passphrase

    if path is not None:
        return read_passphrase(path)
    return str(typer.prompt("Passphrase", hide_input=True, confirmation_prompt=confirm, err=True))


def must_be_new(*paths: Path) -> None:
    """Refuse to overwrite files."""
    taken = [str(path) for path in paths if path.exists()]
    if taken:
        raise ConfigurationError(f"expected new files, got {', '.join(taken)}; choose other names")
