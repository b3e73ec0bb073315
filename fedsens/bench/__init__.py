"""Benchmarks: what a map and the codec cost, beside the same done in other ways."""
