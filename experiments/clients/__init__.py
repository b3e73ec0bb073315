"""Overhead by number of clients."""
