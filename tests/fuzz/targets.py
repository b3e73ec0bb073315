"""The table of parsers that read bytes of another party; both drivers go by it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from . import checksums, fixed, parsers
from .frames import join, join_file, split, split_file, whole
from .mutate import mutate


def _same(data: bytes) -> bytes:
    return data


WHOLE = (whole, b"".join)
MESSAGE, FILE = (split, join), (split_file, join_file)


@dataclass(frozen=True)
class Target:
    """A parser under test. It may raise FedSensError and nothing else.

    Attributes:
        name: what the command line and the table call it.
        parse: the parser.
        multiple: bytes of Python and NumPy memory that it may take for each byte of input, beyond
            ``FIXED`` (see ``guard``).
        mend: makes checksums right again after a mutation.
        most: the longest input.
        parts: cuts an input into parts that are mutated one by one, and joins them.
        corpus: folder of its seeds and findings.
    """

    name: str
    parse: Callable[[bytes], None]
    multiple: int
    mend: Callable[[bytes], bytes] = _same
    most: int = 4096
    corpus: str = ""
    parts: tuple[Callable[[bytes], list[bytes]], Callable[[list[bytes]], bytes]] = WHOLE

    def mutate(self, data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
        """Change one part of an input, the first one half of the time."""
        split, join = self.parts
        parts = split(data) or [b""]
        place = 0 if rng.random() < 0.5 else rng.randrange(len(parts))
        parts[place] = mutate(parts[place], rng, others, self.most)
        return join(parts)[: self.most]

    @property
    def what(self) -> str:
        """The parser in words."""
        return (self.parse.__doc__ or "").strip().rstrip(".")

    def seeds(self) -> list[bytes]:
        """The inputs in the repository, valid ones and those that once found something."""
        folder = fixed.CORPUS / (self.corpus or self.name)
        return [path.read_bytes() for path in sorted(folder.iterdir())]


LONG = 48 * 1024  # more than a sum of maps of one ciphertext and its key sum

ALL = (
    Target("batch", parsers.batch, 8, checksums.batch, LONG),
    Target("aggregate", parsers.aggregate, 16, checksums.batch, LONG, "batch"),
    Target("decrypt", parsers.decrypt, 16, checksums.batch, LONG, "batch"),
    Target("mask", parsers.mask, 24, checksums.mask),
    Target("envelope", parsers.envelope, 16),
    Target("key", parsers.key, 32, checksums.key),
    Target("locked", parsers.locked, 48),
    Target("roster", parsers.roster, 32),
    Target("header", parsers.header, 64),
    Target("layout", parsers.layout, 48),
    Target("arrays", parsers.arrays, 16, parts=MESSAGE),
    Target(
        "model-message", parsers.model_message, 64, checksums.model_message, LONG, parts=MESSAGE
    ),
    Target(
        "update-message", parsers.update_message, 64, checksums.update_message, LONG, parts=MESSAGE
    ),
    Target("map-sum", parsers.map_sum, 64, checksums.map_sum, LONG, parts=MESSAGE),
    Target("plain-map", parsers.plain_map, 32, parts=MESSAGE),
    Target("key-sum-request", parsers.key_sum_request, 64, checksums.key_sum_request),
    Target("key-answer", parsers.key_answer, 8, most=3 * 4096),
    Target("upload-record", parsers.upload_record, 32, checksums.upload_record, 4 * 4096),
    Target("checkpoint", parsers.checkpoint, 64, checksums.tensors, LONG, parts=FILE),
    Target("model-file", parsers.model_file, 64, checksums.tensors, LONG, parts=FILE),
    Target("map-file", parsers.map_file, 64, checksums.tensors, parts=FILE),
    Target("inspect", parsers.inspect, 64, checksums.tensors, LONG, parts=FILE),
)
BY_NAME = {target.name: target for target in ALL}
