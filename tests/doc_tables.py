"""Writes every table of the docs that is made from tests and results: ``make docs``."""

from __future__ import annotations

from experiments.benchmarks import readme

from . import reliability
from .e2e import fault_table
from .fuzz import table

if __name__ == "__main__":
    for generator in (fault_table, table, reliability):
        generator.PAGE.write_text(generator.page())
    readme.update_readme()
