"""Accuracy and convergence under encryption, with even and skewed labels."""
