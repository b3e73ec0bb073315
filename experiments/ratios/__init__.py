"""Overhead by ratio."""
