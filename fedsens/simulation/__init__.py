"""Flower simulations started, watched and summed up by ``fedsens simulate``."""
