"""The command line: ``fedsens``, or ``python -m fedsens.cli``."""

from fedsens.cli.commands import app

__all__ = ["app"]
