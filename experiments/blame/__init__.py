"""Rounds until a client that spoils sums is named: ``python -m experiments.blame``."""
