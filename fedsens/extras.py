"""Packages that only some uses need, imported when they are first used."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

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


def require(module: str, extra: str | None = None) -> ModuleType:
    """Import a module of an optional package.

    Args:
        module: its full name.
        extra: the extra of fedsens that brings it, if not the usual one.

    Raises:
        ConfigurationError: the package is not installed; the text says how to install it.
    """
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
