"""Hundreds of rounds with clients that drop out, fail and lie."""
