"""Between fedsens objects and Flower records: names, codes, bytes and models."""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any, Final, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from fedsens._files import Arrays
from fedsens.errors import ProtocolError
from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask
from fedsens.protocol import (
    Aggregate,
    AggregateHeader,
    Header,
    ModelHeader,
    ProtectedModel,
)

PREFIX: Final = "fedsens."
HEADER: Final = "fedsens.header"
MASK: Final = "fedsens.mask"
MODEL_MASK: Final = "fedsens.model-mask"
CIPHERTEXT: Final = "fedsens.ciphertext"
KEY_SUM: Final = "fedsens.key-sum"
KEY_ANSWER: Final = "fedsens.key-answer"
ENVELOPES: Final = "fedsens.envelopes"
MAP: Final = "fedsens.map"
MAP_KEY_SUM: Final = "fedsens.map-key-sum"
PLAIN_MAP: Final = "fedsens.plain-map"
REQUEST: Final = "fedsens.request"  # a header beside the model's own
ENCRYPTED: Final = frozenset({CIPHERTEXT, KEY_SUM, KEY_ANSWER, MAP, MAP_KEY_SUM})

KEYS_ACTION: Final = "fedsens_keys"
SENSITIVITY_ACTION: Final = "fedsens_sensitivity"
MASK_ACTION: Final = "fedsens_mask"
REKEY_ACTION: Final = "fedsens_rekey"
KEY_SUM_ACTION: Final = "fedsens_key_sum"
ACTIONS: Final = (KEYS_ACTION, SENSITIVITY_ACTION, MASK_ACTION, REKEY_ACTION, KEY_SUM_ACTION)
QUERIES: Final = frozenset(f"query.{action}" for action in ACTIONS)

# Codes of error replies. Flower's own end at 8; by code and not by text does the server know that
# a client refuses the model itself.
RAISED: Final = 2  # Flower's ErrorCode.CLIENT_APP_RAISED_EXCEPTION
REFUSED: Final = 6  # Flower's ErrorCode.MOD_FAILED_PRECONDITION
MODEL_REFUSED: Final = 3006
LIST_REFUSED: Final = 3007  # its list of contributors, which is nobody's doing

STYPE: Final = "fedsens.bytes/1"
NUMPY: Final = "numpy.ndarray"  # Flower's name of np.save's form
PIECE = 4 * 2**20  # Flower moves Arrays as objects; a few megabytes each suit its transport

H = TypeVar("H", bound=Header)

# np.save's form. np.load parses the header as a Python expression, which a hostile one makes
# recurse without end, and allocates what the header claims before it sees how much there is.
NPY_START = re.compile(rb"\x93NUMPY\x01\x00(?s:(..))")
NPY_HEADER = re.compile(
    rb"\{'descr': '([<>|][biufc][0-9]{1,2})', 'fortran_order': (True|False), "
    rb"'shape': \(((?:[0-9]{1,16}, ?)*(?:[0-9]{1,16})?)\), \} *\n"
)


def bytes_to_record(data: bytes) -> ArrayRecord:
    """Wrap bytes as Arrays of a few megabytes each (a ConfigRecord would travel unchunked)."""
    pieces = [data[low : low + PIECE] for low in range(0, len(data), PIECE)] or [b""]
    return ArrayRecord({
        f"{index:06d}": Array(dtype="uint8", shape=(len(piece),), stype=STYPE, data=piece)
        for index, piece in enumerate(pieces)
    })


def record_to_bytes(content: RecordDict, name: str) -> bytes:
    """Take a record of :func:`bytes_to_record` out of a message."""
    record = content.pop(name, None)
    if not isinstance(record, ArrayRecord) or any(a.stype != STYPE for a in record.values()):
        raise ProtocolError(f"expected a record {name!r} of fedsens bytes, got none")
    # One piece is let go as the next is copied, so that a large record is not held twice.
    stream = io.BytesIO()
    for key in sorted(record):
        stream.write(record.pop(key).data)
    return stream.getvalue()  # which copies nothing


def put_header(content: RecordDict, header: Header, name: str = HEADER) -> None:
    """Add a header to a message."""
    content[name] = ConfigRecord({"json": header.to_json()})


def take_header(content: RecordDict, kind: type[H], name: str = HEADER) -> H:
    """Remove a header of this kind from a message."""
    record = content.pop(name, None)
    text = record.get("json") if isinstance(record, ConfigRecord) else None
    if not isinstance(text, str):
        raise ProtocolError(f"expected a {kind.__name__} in the message, got none")
    return kind.from_json(text)


def to_arrays(record: ArrayRecord) -> Arrays:
    """The NumPy arrays of a record, if they can be read."""
    if names := [repr(name) for name, array in record.items() if array.dtype == "bfloat16"]:
        raise ProtocolError(
            f"expected arrays of types that NumPy has, got bfloat16 in {', '.join(names)}; send "
            "tensor.float(), and load_state_dict makes it bfloat16 again"
        )
    if any(array.stype != NUMPY for array in record.values()):
        raise ProtocolError("expected NumPy arrays in the ArrayRecord, got another form")
    if not all(name.isprintable() for name in record):  # others could forge lines of a log
        raise ProtocolError("expected printable names in the ArrayRecord, got others")
    return {name: _read(name, array.data) for name, array in record.items()}


def _read(name: str, data: bytes) -> NDArray[Any]:
    try:
        return read_npy(data)
    except ValueError as error:
        raise ProtocolError(
            f"expected NumPy arrays of numbers in the ArrayRecord, got {name!r} with {error}"
        ) from None


def read_npy(data: bytes) -> NDArray[Any]:
    """Read an array of numbers or booleans from a NumPy file (version 1.0) of ``np.save``.

    Memory is that of the data once more, whatever the header claims.

    Raises:
        ValueError: it is no such file, holds another type, or its data are shorter or longer
            than its shape says.
    """
    start = NPY_START.match(data)
    stop = 10 + int.from_bytes(start[1], "little") if start else 0
    header = NPY_HEADER.fullmatch(data[10:stop])
    if header is None:
        raise ValueError("another header")
    descr, fortran, sizes = header.groups()
    shape = tuple(int(size) for size in sizes.split(b",") if size.strip())
    try:
        dtype = np.dtype(descr.decode())
    except TypeError:
        raise ValueError("another type") from None
    if len(data) - stop != prod(shape) * dtype.itemsize:
        raise ValueError("another size")
    flat = np.frombuffer(data, dtype, prod(shape), stop)
    return flat.reshape(shape, order="F" if fortran == b"True" else "C").copy(order="K")


def to_record(arrays: Arrays) -> ArrayRecord:
    """The inverse of :func:`to_arrays`."""
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def model_key(content: RecordDict) -> str:
    """Key of the only ArrayRecord that is not fedsens's own."""
    keys = [key for key in content.array_records if not key.startswith(PREFIX)]
    if len(keys) != 1:
        raise ProtocolError(
            f"expected exactly one ArrayRecord, which is the model, got {len(keys)}; put other "
            "figures into the MetricRecord, which takes lists, too"
        )
    return keys[0]


@dataclass(frozen=True)
class Received:
    """What came with a model. The model itself is not held: it is large.

    Attributes:
        layout: the model's.
        model_mask: the mask that the model is split by.
        header: what the server said about it.
        mask: the mask that the answer must be split by.
        key: key of its ArrayRecord.
        base: digest of all that the message said.
    """

    layout: ParameterLayout
    model_mask: EncryptionMask
    header: ModelHeader
    mask: EncryptionMask
    key: str
    base: str


def put_model(
    content: RecordDict, model: ProtectedModel, header: ModelHeader, mask: EncryptionMask
) -> None:
    """Add to a message that already carries ``model.plain`` what a client needs to open it."""
    put_header(content, header)
    _put_mask(content, MASK, mask)
    if model.mask != mask:
        _put_mask(content, MODEL_MASK, model.mask)
    if model.aggregate is not None:
        put_aggregate(content, model.aggregate, CIPHERTEXT, KEY_SUM)


def put_aggregate(content: RecordDict, aggregate: Aggregate, values: str, key_sum: str) -> None:
    """Add an aggregate's bytes to a message; its header goes into the message's own."""
    content[values] = bytes_to_record(aggregate.ciphertext)
    content[key_sum] = bytes_to_record(aggregate.key_sum)


def take_aggregate(
    content: RecordDict, header: AggregateHeader, values: str, key_sum: str
) -> Aggregate:
    """Undo :func:`put_aggregate`."""
    return Aggregate(header, record_to_bytes(content, values), record_to_bytes(content, key_sum))


def take_model(content: RecordDict) -> tuple[ProtectedModel, Received]:
    """Take the model, still encrypted, out of a message whose records agree with each other."""
    base = base_digest(content)
    header = take_header(content, ModelHeader)
    layout = ParameterLayout.from_json(header.layout)
    mask = split_by = _take_mask(content, MASK, header.mask, layout)
    if MODEL_MASK in content or header.model_mask != header.mask:
        split_by = _take_mask(content, MODEL_MASK, header.model_mask, layout)
    aggregate = None
    if header.aggregate is not None:
        aggregate = take_aggregate(content, header.aggregate, CIPHERTEXT, KEY_SUM)
    key = model_key(content)
    record: Any = content[key]
    model = ProtectedModel(
        layout, split_by, to_arrays(record), aggregate, header.parameters, header.model_round
    )
    if mask.layout_digest != layout.digest:
        raise ProtocolError("expected a mask for this model's layout, got one for another model")
    return model, Received(layout, split_by, header, mask, key, base)


def base_digest(content: RecordDict) -> str:
    """SHA-256 (hexadecimal) of all that a message says, so that clients told alike agree on it.

    Names, types and sizes are hashed with the data, so that no two contents look the same.
    """
    digest = hashlib.sha256(b"fedsens base 3")
    for key in sorted(content):
        record = content[key]
        digest.update(f"{type(record).__name__} {json.dumps(key)} {len(record)}\n".encode())
        for name, value in sorted(record.items()):
            if isinstance(value, Array):
                told = [name, value.dtype, list(value.shape), value.stype, len(value.data)]
                digest.update(json.dumps(told).encode() + b"\n")
                digest.update(value.data)
            else:
                digest.update(json.dumps([name, _hashable(value)]).encode() + b"\n")
    return digest.hexdigest()


def _hashable(value: Any) -> Any:
    """A value of a record as JSON that says its type, too: 1, 1.0 and True differ."""
    if isinstance(value, list):
        return [_hashable(each) for each in value]
    return [type(value).__name__, value.hex() if isinstance(value, bytes) else repr(value)]


def _put_mask(content: RecordDict, name: str, mask: EncryptionMask) -> None:
    """Add a mask, unless its digest says it all: everything is selected, or nothing."""
    if 0 < mask.k < mask.size:
        content[name] = bytes_to_record(mask.to_bytes())


def _take_mask(
    content: RecordDict, name: str, digest: str, layout: ParameterLayout
) -> EncryptionMask:
    """The mask that a header names; one that did not travel selects everything or nothing."""
    masks: Iterable[EncryptionMask]
    if name in content:
        masks = [EncryptionMask.from_bytes(record_to_bytes(content, name))]
    elif layout.size > sum(size_of(content)):  # of one byte a parameter at least; a forged layout
        raise ProtocolError(  # may claim more than fits into memory
            f"expected a message with a model of {layout.size} parameters, got {size_of(content)} "
            "bytes; the server deviates from the protocol"
        )
    else:
        masks = (
            EncryptionMask(np.full(layout.size, every), layout.digest) for every in (True, False)
        )
    for mask in masks:
        if mask.digest == digest:
            return mask
    raise ProtocolError(
        f"expected the mask {digest[:16]}... that the header names, got another or none"
    )


def examples_of(content: RecordDict, name: str) -> float:
    """The number of examples that an answer's metrics state."""
    values = [metrics[name] for metrics in content.metric_records.values() if name in metrics]
    if len(values) != 1 or not isinstance(values[0], int | float):
        raise ProtocolError(
            f"expected one metric {name!r} with the number of examples, got {len(values)}; "
            "add it to the answer's MetricRecord"
        )
    if not 0 < values[0] < math.inf:
        raise ProtocolError(f"expected a positive, finite number in {name!r}, got another")
    return float(values[0])


def size_of(content: RecordDict) -> tuple[int, int]:
    """Payload of a message in bytes: plaintext (masks and headers included) and encrypted.

    Args:
        content: the message's content.

    Returns:
        The two sizes.
    """
    plain = encrypted = 0
    for key, record in content.array_records.items():
        size = sum(len(array.data) for array in record.values())
        encrypted += size if key in ENCRYPTED else 0
        plain += 0 if key in ENCRYPTED else size
    for config in content.config_records.values():
        plain += sum(map(_bytes_in, config.values()))
    for metrics in content.metric_records.values():
        plain += sum(map(_bytes_in, metrics.values()))
    return plain, encrypted


def _bytes_in(value: Any) -> int:
    if isinstance(value, list):
        return sum(map(_bytes_in, value))
    if isinstance(value, str):
        return len(value.encode())
    return len(value) if isinstance(value, bytes) else 8
