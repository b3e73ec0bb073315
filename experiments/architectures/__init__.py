"""Sensitivity maps on the architectures that people have: exact, or refused by name."""
