"""``python -m fedsens.cli``."""

from fedsens.cli import app

app()
