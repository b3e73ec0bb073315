"""Packages that only some data sets and figures need, imported when they are first used."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

from fedsens.errors import ConfigurationError


def require(module: str, extra: str = "data") -> ModuleType:
    """Import a module of an optional package.

    Args:
        module: its full name.
        extra: what of fedsens brings it.

    Returns:
        The module.

    Raises:
        ConfigurationError: the package is not installed; the text says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"expected the package {module.partition('.')[0]}, got none; "
            f'install it with: pip install "fedsens[{extra}]"'
        ) from error


def require_datasets() -> ModuleType:
    """Import Hugging Face ``datasets`` without its progress bars and usage reports.

    Returns:
        The module.
    """
    # A client reports nothing about its data to anyone; the hub reads this while it is imported.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    datasets = require("datasets")
    datasets.disable_progress_bars()
    return datasets
