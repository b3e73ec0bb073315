"""Overhead by model, beside the paper's columns."""
