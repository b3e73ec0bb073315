"""What a hostile client does to its answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from experiments.soak.schedule import WRONG_TAG
from fedsens import Aggregator, CkksParameters, Encryptor
from fedsens.crypto import MAP_PARAMETERS, parse_batch
from fedsens.flower._records import CIPHERTEXT, HEADER, KEY_ANSWER, MAP, bytes_to_record

Change = Callable[[RecordDict], None]


def change_of(kind: str, parameters: CkksParameters) -> Change:
    """What turns an honest answer into a hostile one.

    Args:
        kind: one of :data:`~experiments.soak.schedule.HOSTILE`, but no replay, or a wrong tag.
        parameters: of the ciphertexts.

    Returns:
        It changes an answer in place.
    """
    changes: dict[str, Change] = {
        "another context": lambda content: _edit_header(content, context="00" * 32),
        "another client's name": lambda content: _edit_header(content, name="ab" * 32),
        "tags beyond the modulus": lambda content: _edit_header(content, tags=[-1]),
        WRONG_TAG: _next_tag,
        "other parameters": lambda content: _replace(
            content, _encrypted_otherwise(content, parameters)
        ),
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
    data = b"".join(array.data for array in content.array_records[MAP].values())
    content[MAP] = bytes_to_record(data[:-7])


def wrong_key(content: RecordDict) -> None:
    """Change one coefficient of a padded secret by one."""
    data = bytearray(b"".join(array.data for array in content.array_records[KEY_ANSWER].values()))
    data[0] = (data[0] + 1) % 256
    content[KEY_ANSWER] = bytes_to_record(bytes(data))


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


def _encrypted_otherwise(content: RecordDict, parameters: CkksParameters) -> bytes:
    values = parse_batch(_bytes(content), parameters).values
    ciphertext, _ = Encryptor(MAP_PARAMETERS, b"another context").encrypt(np.zeros(values))
    return ciphertext


def _edit_header(content: RecordDict, **fields: object) -> None:
    header = json.loads(cast(str, content.config_records[HEADER]["json"]))
    content[HEADER] = ConfigRecord({"json": json.dumps(header | fields)})


def _next_tag(content: RecordDict) -> None:
    first, *others = json.loads(cast(str, content.config_records[HEADER]["json"]))["tags"]
    _edit_header(content, tags=[first - 1 if first else 1, *others])


def _edit_model(content: RecordDict, make: Callable[[np.ndarray], np.ndarray]) -> None:
    name = next(key for key in content.array_records if key not in {CIPHERTEXT, HEADER})
    record: ArrayRecord = content.array_records[name]
    with np.errstate(all="ignore"):
        record["2.weight"] = Array(make(record["2.weight"].numpy() + np.float32(1)))


def _metrics(content: RecordDict, name: str, value: int) -> None:
    next(iter(content.metric_records.values()))[name] = value
