"""What a hostile client does to its answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import cast

import numpy as np
from fedsens.crypto.wire import parse_batch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedsens import Aggregator, CkksParameters, Encryptor, generate_key
from fedsens.flower._records import CIPHERTEXT, HEADER, bytes_to_record
from fedsens.protocol import UpdateHeader

Change = Callable[[RecordDict], None]


def change_of(kind: str, parameters: CkksParameters) -> Change:
    """What turns an honest answer into a hostile one.

    Args:
        kind: one of :data:`~experiments.soak.schedule.HOSTILE`, but no replay.
        parameters: of the ciphertexts.

    Returns:
        It changes an answer in place.
    """
    changes: dict[str, Change] = {
        "another round": _another_round,
        "another key": lambda content: _replace(content, _under_another_key(content, parameters)),
        "cut ciphertext": lambda content: _replace(content, _bytes(content)[:-7]),
        "flipped bit": lambda content: _replace(content, _flipped(_bytes(content))),
        "a sum as ciphertext": lambda content: _replace(
            content, Aggregator(parameters).sum([_bytes(content)])
        ),
        "no ciphertext": _drop,
        "infinite values": lambda content: _edit_model(content, lambda a: a / np.float32(0)),
        "another shape": lambda content: _edit_model(content, lambda a: np.append(a, a)),
        "negative examples": lambda content: _metrics(content, "num-examples", -30),
        "other examples than weighted": lambda content: _metrics(content, "num-examples", 10**6),
        "further metrics": lambda content: _metrics(content, "further", 1),
    }
    return changes[kind]


def cut_map(content: RecordDict) -> None:
    """Cut an encrypted sensitivity map short."""
    data = b"".join(array.data for array in content.array_records["fedsens.map"].values())
    content["fedsens.map"] = bytes_to_record(data[:-7])


def _bytes(content: RecordDict) -> bytes:
    return b"".join(array.data for array in content.array_records[CIPHERTEXT].values())


def _replace(content: RecordDict, data: bytes) -> None:
    content[CIPHERTEXT] = bytes_to_record(data)


def _drop(content: RecordDict) -> None:
    del content[CIPHERTEXT]


def _flipped(data: bytes) -> bytes:
    changed = bytearray(data)
    changed[len(data) // 2] ^= 4
    return bytes(changed)


def _under_another_key(content: RecordDict, parameters: CkksParameters) -> bytes:
    values = parse_batch(_bytes(content), parameters).values
    return Encryptor(generate_key(parameters)).encrypt(np.zeros(values))


def _another_round(content: RecordDict) -> None:
    text = cast(str, content.config_records[HEADER]["json"])
    header = UpdateHeader.model_validate_json(text).model_dump()
    fields = json.dumps({**header, "round": header["round"] - 1})
    content[HEADER] = ConfigRecord({"json": fields})


def _edit_model(content: RecordDict, make: Callable[[np.ndarray], np.ndarray]) -> None:
    name = next(key for key in content.array_records if key not in {CIPHERTEXT, HEADER})
    record: ArrayRecord = content.array_records[name]
    with np.errstate(all="ignore"):
        record["2.weight"] = Array(make(record["2.weight"].numpy() + np.float32(1)))


def _metrics(content: RecordDict, name: str, value: int) -> None:
    next(iter(content.metric_records.values()))[name] = value
