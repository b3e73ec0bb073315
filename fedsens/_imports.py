"""What is imported when it is first used: names of a package (PEP 562), and optional packages."""

from __future__ import annotations

import ast
import importlib
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from fedsens.errors import ConfigurationError

EXTRAS = {
    "backpack": "experiments",
    "datasets": "data",
    "dp_accounting": "privacy",
    "flwr_datasets": "data",
    "matplotlib": "figures",
    "opacus": "experiments",
    "pandas": "experiments",
    "pyarrow": "data",
    "ray": "simulation",
    "scipy": "audit",
    "skimage": "audit",
    "sklearn": "data",
    "transformers": "examples",
}


def attach(
    package: str, file: str, names: Sequence[str]
) -> tuple[Callable[[str], Any], Callable[[], Sequence[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a package whose names are imported when first used.

    Where each comes from, the package says once: in the imports for type checkers in its file.
    """

    @cache
    def homes() -> dict[str, str]:
        blocks = (n for n in ast.parse(Path(file).read_text("utf-8")).body if isinstance(n, ast.If))
        imports = (each for block in blocks for each in block.body)
        return {
            alias.name: str(each.module)
            for each in imports
            if isinstance(each, ast.ImportFrom)
            for alias in each.names
        }

    def get(name: str) -> Any:
        if name not in names or name not in homes():
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes()[name]), name)

    return get, lambda: names


def require(module: str, extra: str | None = None) -> ModuleType:
    """Import a module of an optional package; the error says by which extra to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        raise ConfigurationError(install_line(package, extra or EXTRAS[package])) from error


def install_line(package: str, extra: str) -> str:
    """The error text for a package that is not installed and that an extra brings."""
    return (
        f'expected the package {package}, got none; install it with: pip install "fedsens[{extra}]"'
    )


def require_datasets() -> ModuleType:
    """Import Hugging Face ``datasets`` without its progress bars and usage reports."""
    # A client reports nothing about its data to anyone; the hub reads this while it is imported.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    datasets = require("datasets")
    datasets.disable_progress_bars()
    return datasets
