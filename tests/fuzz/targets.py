"""The table of parsers that read bytes of another party; both drivers go by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import fixed, mend, parsers


def _same(data: bytes) -> bytes:
    return data


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
        corpus: folder of its seeds and findings.
    """

    name: str
    parse: Callable[[bytes], None]
    multiple: int
    mend: Callable[[bytes], bytes] = _same
    most: int = 4096
    corpus: str = ""

    @property
    def what(self) -> str:
        """The parser in words."""
        return (self.parse.__doc__ or "").strip().rstrip(".")

    def seeds(self) -> list[bytes]:
        """The inputs in the repository, valid ones and those that once found something."""
        folder = fixed.CORPUS / (self.corpus or self.name)
        return [path.read_bytes() for path in sorted(folder.iterdir())]


LONG = 48 * 1024  # more than a sum of one ciphertext

ALL = (
    Target("batch", parsers.batch, 4, mend.batch, LONG),
    Target("aggregate", parsers.aggregate, 4, mend.batch, LONG, "batch"),
    Target("decrypt", parsers.decrypt, 8, mend.batch, LONG, "batch"),
    Target("mask", parsers.mask, 24, mend.mask),
    Target("envelope", parsers.envelope, 16),
    Target("key", parsers.key, 32, mend.key, 2 * LONG),
    Target("locked", parsers.locked, 48),
    Target("public", parsers.public, 32),
    Target("roster", parsers.roster, 32),
    Target("header", parsers.header, 64),
    Target("layout", parsers.layout, 48),
    Target("arrays", parsers.arrays, 16),
    Target("model-message", parsers.model_message, 64, mend.model_message, LONG),
    Target("update-message", parsers.update_message, 64, mend.update_message, LONG),
    Target("plain-map", parsers.plain_map, 8),
    Target("checkpoint", parsers.checkpoint, 64, mend.tensors, LONG),
    Target("model-file", parsers.model_file, 64, mend.tensors, LONG),
    Target("map-file", parsers.map_file, 64, mend.tensors),
    Target("inspect", parsers.inspect, 64, mend.tensors, LONG),
)
BY_NAME = {target.name: target for target in ALL}
