"""A seeded mutator for binary and JSON inputs: flips, cuts, splices, number fields, tokens."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Sequence

NUMBERS = (0, 1, 2, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**53)
WIDE = (2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
TOKENS = (
    *(b"null", b"true", b"[]", b"{}", b'""', b"-1", b"0", b"1e999", b"-0.0", b"5e-324", b"NaN"),
    *(b"1" * 400, b"9" * 4300, b"1e308", b"18446744073709551616", b'"\\ud800"', b'"\\n"', b'"a"'),
    *(b"[" * 990, b'{"a":' * 200, b"[0,[0,0]]", b'"float32"', b'"type"', b'"precise"', b"4096"),
)
VALUE = re.compile(rb'[:\[,]\s*("(?:[^"\\]|\\.)*"|-?[0-9.eE+-]+|true|false|null)')
Change = Callable[[bytearray, random.Random, Sequence[bytes]], None]


def _place(data: bytearray, rng: random.Random) -> int:
    """A position, near the start (where headers are) half of the time."""
    size = len(data)
    return rng.randrange(min(size, 160) if rng.random() < 0.5 else size) if size else 0


def flip(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    """Flip one bit."""
    if data:
        data[_place(data, rng)] ^= 1 << rng.randrange(8)


def byte(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    """Set one byte."""
    if data:
        data[_place(data, rng)] = rng.randrange(256)


def number(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    """Write a number that is often at an edge into a field of one to eight bytes."""
    width = rng.choice((1, 2, 4, 8))
    at = _place(data, rng) // width * width if rng.random() < 0.5 else _place(data, rng)
    value = rng.choice(NUMBERS + WIDE) + rng.choice((-1, 0, 0, 1))
    data[at : at + width] = (value % 2 ** (8 * width)).to_bytes(width, "little")


def cut(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    """Drop some bytes, or all from a place on."""
    at = _place(data, rng)
    del data[at : at + (rng.randrange(1, 64) if rng.random() < 0.6 else len(data))]


def repeat(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    """Write some bytes twice."""
    at = _place(data, rng)
    data[at:at] = data[at : at + rng.randrange(1, 64)]


def splice(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
    """Continue with another input."""
    other = rng.choice(others) if others else b""
    at = _place(data, rng)
    data[at:] = other[rng.choice((at, rng.randrange(len(other) + 1))) :]


def token(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    """Put a JSON token in the place of a value, or of any bytes."""
    at = _place(data, rng)
    starts = [place for mark in b":,[" if (place := data.find(mark, at) + 1)]
    if starts and rng.random() < 0.8:
        at = min(starts)
        stops = [place for mark in b",]}" if (place := data.find(mark, at)) >= 0]
        data[at : min(stops, default=at)] = rng.choice(TOKENS)
    else:
        data[at:at] = rng.choice(TOKENS)


def value(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    """Replace a value of a JSON text, or repeat it behind itself."""
    found = list(itertools.islice(VALUE.finditer(data), 200))
    if found:
        low, high = rng.choice(found).span(1)
        new = rng.choice(TOKENS)
        data[low:high] = new if rng.random() < 0.9 else bytes(data[low:high]) + b"," + new


CHANGES: tuple[Change, ...] = (flip, byte, number, number, cut, repeat, splice, token, value, value)


def mutate(data: bytes, rng: random.Random, others: Sequence[bytes], most: int) -> bytes:
    """Change an input a few times.

    Args:
        data: the input.
        rng: decides.
        others: inputs to splice with.
        most: the longest that the result may be.

    Returns:
        The new input.
    """
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        rng.choice(CHANGES)(changed, rng, others)
    return bytes(changed[:most])
