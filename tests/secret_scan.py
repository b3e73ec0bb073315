"""Searches documents for key material and for the values of models, in every likely form.

A document is anything that was sent, logged or written. Key material is looked for as bytes: raw,
escaped, hexadecimal and base64 at each alignment. Values are looked for as little-endian float64,
as float32 beside their neighbour (four bytes alone appear in ciphertexts by chance), and as decimal
text of six or more significant digits.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

SLICE = 24  # bytes of a long secret that are looked for: a part of it is a leak too
DIGITS = (6, 17)  # significant digits: the fewest that are looked at, the most that exist
NUMBER = re.compile(rb"(?<![\w.+-])[+-]?\d+\.\d*(?:[eE][+-]?\d+)?(?![\w.])")
# Durations are measured, so their digits are any digits.
DURATION = re.compile(rb"seconds[\"']*\s*[:=]\s*[-+.\de]+")

Documents = Mapping[str, bytes]


@dataclass
class Needles:
    """What must be found nowhere.

    Attributes:
        secrets: name to forms of key material.
        words: name to 8-byte words of values.
        decimals: values in scientific notation by number of significant digits.
    """

    secrets: dict[str, list[bytes]] = field(default_factory=dict)
    words: set[int] = field(default_factory=set)
    decimals: dict[int, set[str]] = field(default_factory=dict)
    _sorted: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))

    def add_secret(self, name: str, secret: bytes, step: int = 512) -> None:
        """Look for key material: all of it, or any of its slices at every ``step`` bytes."""
        slices = [secret[i : i + SLICE] for i in range(0, len(secret) - SLICE + 1, step)]
        self.secrets[name] = [form for each in slices for form in forms(each)]

    def add_values(self, vector: np.ndarray) -> None:
        """Look for every value of a vector; zeros and round numbers are no secret."""
        values = np.asarray(vector, np.float64).reshape(-1)
        single = values.astype(np.float32)
        pairs = np.column_stack([single[:-1], single[1:]])
        telling = (single[:-1] != single[1:]) & np.all(_telling(pairs), axis=1)
        self.words.update(_words(pairs[telling].tobytes()))
        self.words.update(_words(values[_telling(values)].tobytes()))
        for value in {*values[_telling(values)], *single[_telling(single)].astype(np.float64)}:
            for digits in range(DIGITS[0], DIGITS[1] + 1):
                self.decimals.setdefault(digits, set()).add(f"{abs(value):.{digits - 1}e}")
        for value in single[_telling(single)]:  # NumPy's shortest text of a float32
            digits, number = _scientific(str(abs(value)).encode())
            if number:
                self.decimals.setdefault(digits, set()).add(number)

    def search(self, documents: Documents) -> list[str]:
        """Every find: the document's name and what is in it."""
        if len(self._sorted) != len(self.words):  # words are added, and never taken away
            self._sorted = np.sort(np.fromiter(self.words, np.uint64, len(self.words)))
        found = []
        for name, data in documents.items():
            found += [f"{name}: {kind}" for kind in self._secrets_in(data)]
            found += [f"{name}: a value in binary"] * _holds_words(data, self._sorted)
            found += [f"{name}: a value as text, {text}" for text in self._decimals_in(data)]
        return found

    def _secrets_in(self, data: bytes) -> Iterable[str]:
        for name, all_forms in self.secrets.items():
            if any(form in data for form in all_forms):
                yield name

    def _decimals_in(self, data: bytes) -> Iterable[str]:
        for match in NUMBER.finditer(DURATION.sub(b"", data)):
            digits, number = _scientific(match[0])
            if number and number in self.decimals.get(digits, ()):
                yield match[0].decode()


def forms(secret: bytes) -> list[bytes]:
    """How bytes may appear: raw, as Python and JSON show them, hexadecimal and base64."""
    escaped = repr(b'"' + secret)[3:-1]  # whether a quote is escaped depends on what is around it
    texts = [escaped, escaped.replace("\\'", "'")]
    texts += [secret.hex(), secret.hex().upper(), secret.hex(" ")]
    for shift in range(3):  # base64 of a longer text depends on where the secret begins in it
        usual = base64.b64encode(bytes(shift) + secret)
        inner = usual[4 if shift else 0 : 4 * ((shift + len(secret)) // 3)]
        texts += [inner.decode(), inner.translate(bytes.maketrans(b"+/", b"-_")).decode()]
    return [secret, str(list(secret))[1:-1].encode(), *(text.encode() for text in texts)]


def _telling(values: np.ndarray) -> np.ndarray:
    # a value that could stand anywhere for another reason has few bits in its mantissa
    single = values.astype(np.float32)
    return np.isfinite(single) & (single != 0) & (single.view(np.uint32) & 0xFFF != 0)


def _words(data: bytes) -> list[int]:
    return np.frombuffer(data, "<u8").tolist()


def _holds_words(data: bytes, words: np.ndarray) -> bool:
    if not words.size:
        return False
    for shift in range(8):
        whole = (len(data) - shift) // 8 * 8
        if whole <= 0:
            return False
        windows = np.frombuffer(data, "<u8", whole // 8, shift)
        places = np.minimum(np.searchsorted(words, windows), words.size - 1)
        if np.any(words[places] == windows):
            return True
    return False


def _scientific(text: bytes) -> tuple[int, str]:
    """Significant digits of a number and the number with as many."""
    mantissa = re.split(rb"[eE]", text.lstrip(b"+-"))[0].replace(b".", b"").lstrip(b"0")
    digits = min(max(len(mantissa), 1), DIGITS[1])
    if digits < DIGITS[0]:
        return digits, ""
    return digits, f"{abs(float(text)):.{digits - 1}e}"
