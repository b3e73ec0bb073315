"""The parsers under test as functions of bytes, each called as fedsens itself calls it."""

from __future__ import annotations

import os
import struct
from functools import cache
from pathlib import Path

from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    Metadata,
    MetricRecord,
    RecordDict,
)

from fedsens.crypto import Aggregator, CkksParameters, Decryptor, SecretKey
from fedsens.crypto.wire import parse_batch
from fedsens.flower import records
from fedsens.flower.maps import PlainMapSum
from fedsens.flower.updates import Updates
from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask
from fedsens.protocol import headers
from fedsens.protocol.checkpoint import load_checkpoint
from fedsens.protocol.describe import describe, load_model
from fedsens.protocol.envelope import unseal
from fedsens.protocol.keyfile import PublicParameters, load_key, locked_key_in
from fedsens.protocol.roster import read_roster
from fedsens.protocol.tags import tagged
from fedsens.sensitivity.mapfile import load_map

from . import fixed
from .frames import split

COMPACT = CkksParameters.preset("compact")
KINDS = (
    *(headers.ModelHeader, headers.UpdateHeader, headers.KeyRequest, headers.KeyReply),
    *(headers.MapRequest, headers.MapReply, headers.MaskRequest, headers.RotateRequest),
)
ANSWER = Metadata(1, "2", 3, 4, "5", "6", 7.0, 8.0, "train")  # of no account to the parser
CHEAP = 2**20  # bytes of scrypt up to which a mutated lock is tried


def batch(data: bytes) -> None:
    """A ciphertext batch, up to SEAL."""
    parse_batch(data, COMPACT).to_bytes()


def aggregate(data: bytes) -> None:
    """A ciphertext batch, through SEAL: as the first summand and as the second."""
    aggregator = Aggregator(COMPACT, None, fixed.key().fingerprint)
    aggregator.add(data)
    aggregator.add(data)


@cache
def _decryptor() -> Decryptor:
    return Decryptor(fixed.key())


def decrypt(data: bytes) -> None:
    """A ciphertext batch, through SEAL to its values."""
    _decryptor().decrypt(data)


def mask(data: bytes) -> None:
    """A mask."""
    EncryptionMask.from_bytes(data).to_bytes()


def envelope(data: bytes) -> None:
    """An envelope from the fixed sender to the fixed recipient."""
    sender, recipient = fixed.identities()
    public = sender.public_key().public_bytes_raw()
    SecretKey.from_bytes(unseal(data, recipient, public, fixed.RUN))


def key(data: bytes) -> None:
    """A secret key, from an envelope or a file, until SEAL holds it."""
    found = SecretKey.from_bytes(data)
    for parameters in found.parameter_sets:
        found.using(parameters).seal_key()


def locked(data: bytes) -> None:
    """A key file, locked or not. Costly locks are read, but not tried."""
    found = locked_key_in(data)
    if found is None or 128 * found.scrypt.n * found.scrypt.r <= CHEAP:
        load_key(_file(data), lambda: fixed.PASSPHRASE)


def public(data: bytes) -> None:
    """A file of public parameters."""
    PublicParameters.load(_file(data))


def roster(data: bytes) -> None:
    """A roster."""
    read_roster(_file(data))


def header(data: bytes) -> None:
    """A header: the first byte chooses its kind."""
    kind = KINDS[data[0] % len(KINDS)] if data else KINDS[0]
    records.take_header(_with_header(data[1:]), kind).to_json()


def layout(data: bytes) -> None:
    """A layout."""
    found = ParameterLayout.from_json(data.decode(errors="replace"))
    _ = (found.digest, found.dtype, found.size, found.to_json())


def arrays(data: bytes) -> None:
    """The arrays of an ArrayRecord: pairs of a name and the bytes of a NumPy file."""
    records.to_arrays(_arrays(split(data)))


def model_message(data: bytes) -> None:
    """A model as a client gets it."""
    content = _content(split(data))
    model, _ = records.take_model(content)
    model.open(fixed.key())


def update_message(data: bytes) -> None:
    """A trained model as the server gets it."""
    frames = split(data)
    frames += [b""] * (4 - len(frames))
    value = struct.unpack("<d", frames[2].ljust(8, b"\0")[:8])[0]
    content = _content([frames[0], b"", b"", *frames[3:]])
    content["metrics"] = MetricRecord({"num-examples": value})
    updates = Updates(fixed.sent(), fixed.layout(), fixed.mask(), fixed.key().fingerprint)
    _, ciphertext = updates._check(Message(content, metadata=ANSWER))
    count = tagged(fixed.mask().k, COMPACT)
    Aggregator(COMPACT, count, fixed.key().fingerprint).add(ciphertext, fresh=True)


def plain_map(data: bytes) -> None:
    """A map in plaintext as the server gets it."""
    content = RecordDict({records.PLAIN_MAP: records.bytes_to_record(data)})
    PlainMapSum(8)._add(content)


def checkpoint(data: bytes) -> None:
    """A checkpoint."""
    load_checkpoint(_file(data))


def model_file(data: bytes) -> None:
    """An exported model as ``fedsens open`` reads it."""
    load_model(_file(data)).open(fixed.key())


def map_file(data: bytes) -> None:
    """A file of a sensitivity map."""
    load_map(_file(data))


def inspect(data: bytes) -> None:
    """Any file, as ``fedsens inspect`` reads it."""
    describe(_file(data))


@cache
def _descriptor() -> int:
    descriptor = os.memfd_create("fuzz")
    os.fchmod(descriptor, 0o600)
    return descriptor


def _file(data: bytes) -> Path:
    """A private file in memory with this content."""
    os.ftruncate(_descriptor(), 0)
    os.pwrite(_descriptor(), data, 0)
    return Path(f"/proc/self/fd/{_descriptor()}")


def _with_header(text: bytes) -> RecordDict:
    record = ConfigRecord({"json": text.decode(errors="replace")})
    return RecordDict({records.HEADER: record})


def _content(frames: list[bytes]) -> RecordDict:
    """A message: header, mask, the model's mask or the examples, ciphertext, then arrays."""
    frames += [b""] * (4 - len(frames))
    content = _with_header(frames[0])
    names = (records.MASK, records.MODEL_MASK, records.CIPHERTEXT)
    for name, data in zip(names, frames[1:4], strict=True):
        if data:
            content[name] = records.bytes_to_record(data)
    content["arrays"] = _arrays(frames[4:])
    return content


def _arrays(frames: list[bytes]) -> ArrayRecord:
    pairs = zip(frames[::2], frames[1::2], strict=False)
    return ArrayRecord({
        name.decode(errors="replace"): Array("float32", (1,), "numpy.ndarray", data)
        for name, data in pairs
    })
