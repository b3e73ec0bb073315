"""The page of all benchmarks, docs/benchmarks/README.md."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version

from rich.table import Table

from fedsens._tables import to_markdown

SECTIONS = {
    "codec": "The codec",
    "round": "A round",
    "scale": "Growing models and federations",
    "map": "Sensitivity maps",
}


def benchmark_page(tables: Mapping[str, Sequence[Table]]) -> str:
    """All tables as one page of Markdown.

    Args:
        tables: name of the benchmark to its tables.

    Returns:
        The page.
    """
    packages = ("fedsens", "torch", "flwr", "tenseal")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    parts = [
        "# Benchmarks\n",
        "Written by `make bench`, which is `python -m experiments.benchmarks`. Times are CPU "
        "times, medians. What counts are the ratios: both sides of each are measured "
        "in the same run.\n",
        f"{datetime.now(UTC):%Y-%m-%d}, {machine}, {versions}.\n",
    ]
    for name, some in tables.items():
        command = f"`python -m experiments.benchmarks {name}`"
        parts += [f"## {SECTIONS[name]}\n", f"{command}, figures in [{name}.json]({name}.json)\n"]
        parts += map(to_markdown, some)
    return "\n".join(parts)
