"""Large inputs of nothing but structure: memory stays within the multiple that is stated."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable

import numpy as np
import pytest

from fedsens.crypto._wire import BATCH_HEADER, BATCH_VERSION, FRESH, MAGIC
from fedsens.mask import EncryptionMask
from fedsens.protocol import Contributor, Contributors

from . import checksums, fixed
from .frames import join
from .guard import FIXED, Guard
from .seeds import encrypted, npy
from .targets import BY_NAME

SIZE = 200_000  # bytes, about


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def unknown_fields() -> bytes:
    """A header of fields that it does not have."""
    return b"\1" + _json({str(i): 0 for i in range(SIZE // 8)})


def wrong_fields() -> bytes:
    """A roster in a header, each entry of which is wrong."""
    entries = {str(i): "x" for i in range(SIZE // 10)}
    header = json.loads((fixed.CORPUS / "header" / "seed-KeyRequest").read_bytes()[1:])
    return b"\2" + _json(header | {"roster": entries})


def nested() -> bytes:
    """Lists in lists."""
    return b"[" * (SIZE // 2) + b"]" * (SIZE // 2)


def many_tensors() -> bytes:
    """A layout of scalars with short names."""
    return _json([[f"{i:x}", [], "bool"] for i in range(SIZE // 18)])


def many_files() -> bytes:
    """A safetensors file of empty tensors."""
    head = {f"{i:x}": {"dtype": "I8", "shape": [0], "data_offsets": [0, 0]} for i in range(3000)}
    text = _json(head | {"__metadata__": {"fedsens": "{}", "sha256": "0"}})
    return checksums.tensors(struct.pack("<Q", len(text)) + text)


def large_mask() -> bytes:
    """A mask of all coordinates."""
    return EncryptionMask(np.ones(8 * SIZE, bool), "00" * 32).to_bytes()


def empty_arrays() -> bytes:
    """Arrays without elements, whose names are short."""
    return join(
        part for i in range(SIZE // 150) for part in (f"{i:x}".encode(), npy(np.empty(0, np.int8)))
    )


def large_array() -> bytes:
    """One array."""
    return join([b"a", npy(np.zeros(SIZE // 8))])


def many_keys() -> bytes:
    """A roster."""
    return _json([f"{i:064x}" for i in range(SIZE // 67)])


def long_key() -> bytes:
    """A key of too many bytes."""
    content = json.loads((fixed.CORPUS / "key" / "seed-key").read_bytes())
    return _json(content | {"key": "AAAA" * (SIZE // 4)})


def many_blocks() -> bytes:
    """A batch of twelve ciphertexts."""
    return encrypted(fixed.PARAMETERS, np.linspace(-1, 1, 12 * 4096))


def claimed_blocks() -> bytes:
    """A batch that claims 2^32 - 1 ciphertexts."""
    digest, blocks = fixed.PARAMETERS.digest, 2**32 - 1
    head = BATCH_HEADER.pack(MAGIC, BATCH_VERSION, FRESH, digest, blocks * 4096, blocks, 1)
    return checksums.batch(head + bytes(SIZE))


def many_contributors() -> bytes:
    """A list of others than the client."""
    who = Contributors.of(
        Contributor(name=f"{i:064x}", weight=0.001, nonce="ab" * 16) for i in range(SIZE // 150)
    )
    seed = json.loads((fixed.CORPUS / "key-sum-request" / "seed-both").read_bytes())
    return _json(seed | {"contributors": who.model_dump()})


def wrong_contributors() -> bytes:
    """A list, each entry of which is wrong."""
    seed = json.loads((fixed.CORPUS / "key-sum-request" / "seed-both").read_bytes())
    return _json(seed | {"contributors": {"members": [{}] * (SIZE // 3)}})


def long_answer() -> bytes:
    """A padded secret of too many numbers."""
    return bytes(SIZE)


def long_record() -> bytes:
    """A record of an upload with a long secret."""
    content = {"secret": "AAAA" * (SIZE // 4), "weight": 1.0, "nonce": "", "context": ""}
    return checksums.upload_record(b"\1\n" + _json(content | {"cohort": [], "key_index": 0}))


def many_reports() -> bytes:
    """Reports of a run."""
    return (fixed.CORPUS / "inspect" / "seed-reports").read_bytes() * (SIZE // 226)


LARGE: dict[Callable[[], bytes], tuple[str, ...]] = {
    unknown_fields: ("header",),
    wrong_fields: ("header",),
    nested: ("layout", "roster", "locked", "key", "header", "inspect", "key-sum-request"),
    many_tensors: ("layout", "inspect", "roster"),
    many_files: ("checkpoint", "model-file", "map-file", "inspect"),
    large_mask: ("mask",),
    empty_arrays: ("arrays", "model-message", "update-message"),
    large_array: ("arrays",),
    many_keys: ("roster", "inspect"),
    long_key: ("key", "locked", "inspect"),
    many_blocks: ("batch", "aggregate", "decrypt"),
    claimed_blocks: ("batch", "aggregate", "decrypt"),
    many_contributors: ("key-sum-request",),
    wrong_contributors: ("key-sum-request",),
    long_answer: ("key-answer",),
    long_record: ("upload-record",),
    many_reports: ("inspect",),
}
CASES = [(make, name) for make, names in LARGE.items() for name in names]


@pytest.mark.parametrize(("make", "name"), CASES, ids=lambda each: getattr(each, "__name__", each))
def test_a_large_input_takes_a_multiple_of_its_size(make, name):
    data = make()
    assert 0.3 * SIZE < len(data) < 3 * SIZE or make is many_files
    guard = Guard(BY_NAME[name], traced=1)
    guard.try_input(data)
    assert guard.peak <= FIXED + guard.target.multiple * len(data)
