"""Large inputs of nothing but structure: memory stays within the multiple that is stated."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable

import numpy as np
import pytest

from fedsens.crypto import Encryptor
from fedsens.crypto.wire import FRESH, Batch
from fedsens.mask import EncryptionMask

from . import fixed, mend
from .frames import join
from .guard import FIXED, Guard
from .seeds import npy
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
    return mend.tensors(struct.pack("<Q", len(text)) + text)


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


def public_sets() -> bytes:
    """Public parameters of many sets."""
    public = json.loads((fixed.CORPUS / "public" / "seed-key").read_bytes())
    return _json(public | {"parameters": public["parameters"] * (SIZE // 120)})


def many_keys() -> bytes:
    """A roster."""
    return _json([f"{i:064x}" for i in range(SIZE // 67)])


def key_list() -> bytes:
    """A key of many parts that are none."""
    content = json.loads((fixed.CORPUS / "key" / "seed-key").read_bytes())
    return _json(content | {"keys": [[]] * (SIZE // 3)})


def many_blocks() -> bytes:
    """A batch of twelve ciphertexts."""
    return Encryptor(fixed.key()).encrypt(np.linspace(-1, 1, 12 * 4096))


def claimed_blocks() -> bytes:
    """A batch that claims 2^32 - 1 ciphertexts."""
    parameters = fixed.key().parameters
    batch = Batch(FRESH, parameters.digest, fixed.key().fingerprint, (2**32 - 1) * 4096, 1, ())
    data = bytearray(batch.to_bytes())
    data[48:52] = b"\xff" * 4
    return mend.batch(bytes(data) + bytes(SIZE))


def many_reports() -> bytes:
    """Reports of a run."""
    return (fixed.CORPUS / "inspect" / "seed-reports").read_bytes() * (SIZE // 226)


LARGE: dict[Callable[[], bytes], tuple[str, ...]] = {
    unknown_fields: ("header",),
    wrong_fields: ("header",),
    nested: ("layout", "roster", "public", "locked", "key", "header", "inspect"),
    many_tensors: ("layout", "inspect", "roster"),
    many_files: ("checkpoint", "model-file", "map-file", "inspect"),
    large_mask: ("mask",),
    empty_arrays: ("arrays", "model-message", "update-message"),
    large_array: ("arrays",),
    public_sets: ("public", "inspect"),
    many_keys: ("roster", "inspect"),
    key_list: ("key", "locked", "inspect"),
    many_blocks: ("batch", "aggregate", "decrypt"),
    claimed_blocks: ("batch", "aggregate", "decrypt"),
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
