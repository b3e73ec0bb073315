"""Flower's quickstarts, as apps of our own in their shape, with and without fedsens."""
