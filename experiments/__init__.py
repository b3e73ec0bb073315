"""Experiments behind the documentation, run with ``python -m experiments.NAME``."""
