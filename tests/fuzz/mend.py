"""Checksums made right again after a mutation, so that the checks behind them are reached.

Every function returns its input unchanged where that is too broken to have a checksum.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import zlib
from typing import Any

from fedsens.crypto import CkksParameters
from fedsens.errors import FedSensError
from fedsens.layout import ParameterLayout

from .frames import join, split

BROKEN = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
DTYPES = {"BOOL": "bool", "BF16": "bfloat16"}  # else F32 is float32, I64 is int64


def batch(data: bytes) -> bytes:
    """A ciphertext batch with its CRC."""
    return data[:-4] + zlib.crc32(data[:-4]).to_bytes(4, "little") if len(data) > 4 else data


def mask(data: bytes) -> bytes:
    """A mask with its SHA-256, whose bit count agrees half of the time."""
    body = data[:-32]
    if len(body) > 56 and body[-1] & 1:
        k = sum(map(int.bit_count, body[56:]))
        body = body[:16] + struct.pack("<Q", k) + body[24:]
    return body + hashlib.sha256(body).digest()


def key(data: bytes) -> bytes:
    """A key's JSON with its fingerprint."""
    try:
        content = json.loads(data)
        content["fingerprint"] = _fingerprint(content["keys"])
        return json.dumps(content).encode()
    except BROKEN:
        return data


def _fingerprint(keys: Any) -> str:
    digest = hashlib.sha256(b"fedsens key fingerprint 1")
    parts = [
        CkksParameters.model_validate(item["parameters"]).digest
        + hashlib.sha256(base64.b64decode(item["secret"])).digest()
        for item in keys
    ]
    for part in sorted(parts):
        digest.update(part)
    return digest.hexdigest()[:32]


def tensors(data: bytes) -> bytes:
    """A safetensors file of fedsens with its length field, ciphertext, masks and SHA-256."""
    try:
        (length,) = struct.unpack_from("<Q", data)
        length = length if length <= len(data) - 8 else data.rindex(b"}") - 7
        head = json.loads(data[8 : 8 + length])
        body = bytearray(data[8 + length :])
        for name, item in head.items():
            low, high = item.get("data_offsets", (0, 0))
            if name.startswith("fedsens."):
                body[low:high] = (mask if "mask" in name else batch)(bytes(body[low:high]))
        head["__metadata__"]["sha256"] = _checksum(head, body)
        text = json.dumps(head).encode()
        return struct.pack("<Q", len(text)) + text + bytes(body)
    except (*BROKEN, struct.error):
        return data


def _checksum(head: dict[str, Any], body: bytearray) -> str:
    digest = hashlib.sha256()
    for name in sorted(set(head) - {"__metadata__"}):
        item = head[name]
        low, high = item["data_offsets"]
        digest.update(f"{name}|{_numpy_name(item['dtype'])}|{list(item['shape'])}|".encode())
        digest.update(body[low:high])
    content = f"{head['__metadata__']['fedsens']}|{digest.hexdigest()}"
    return hashlib.sha256(content.encode()).hexdigest()


def _numpy_name(dtype: str) -> str:
    kind, bits = (
        re.fullmatch("([FIU])([0-9]+)", dtype).groups() if dtype not in DTYPES else ("", "")
    )
    return {"F": "float", "I": "int", "U": "uint"}[kind] + bits if kind else DTYPES[dtype]


def model_message(data: bytes) -> bytes:
    """A model's message (see ``parsers``) whose digests are right: of masks and of the layout."""
    frames = split(data)
    try:
        header = json.loads(frames[0])
        digest = bytes.fromhex(ParameterLayout.from_json(header["layout"]).digest)
        frames[1:3] = [_mask_of(digest, each) for each in frames[1:3]]
        frames[3] = batch(frames[3])
        header["mask"] = frames[1][-32:].hex()
        header["model_mask"] = (frames[2] or frames[1])[-32:].hex()
        frames[0] = json.dumps(header).encode()
    except (*BROKEN, FedSensError):
        return data
    return join(frames)


def _mask_of(layout: bytes, data: bytes) -> bytes:
    return mask(data[:24] + layout + data[56:]) if data else data


def update_message(data: bytes) -> bytes:
    """An update's message whose ciphertext and weight are right."""
    frames = split(data)
    try:
        header = json.loads(frames[0])
        header["weight"] = struct.unpack("<d", frames[2])[0] / 20.0
        frames[0] = json.dumps(header).encode()
        frames[3] = batch(frames[3])
    except (*BROKEN, struct.error):
        return data
    return join(frames)
