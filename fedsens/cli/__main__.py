"""``python -m fedsens.cli``."""

from fedsens.cli.commands import app

app()
