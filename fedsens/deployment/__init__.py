"""Runs on a deployed SuperLink, submitted and followed by ``fedsens submit``."""
