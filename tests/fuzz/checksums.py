"""Checksums made right again after a mutation, so that the checks behind them are reached.

Every function returns its input unchanged where that is too broken to have a checksum.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
from typing import Any

import numpy as np

from fedsens.crypto._wire import BATCH_HEADER, CHECKSUM, SEGMENT, checksum
from fedsens.errors import FedSensError
from fedsens.keys._key import DOMAIN
from fedsens.keys._opening import _bound, _contributions, _secret_of
from fedsens.keys._pads import COEFFICIENTS, put_pads_on
from fedsens.keys._tags import expected_tags
from fedsens.layout import ParameterLayout
from fedsens.protocol import Aggregate, AggregateHeader, KeySumRequest

from . import fixed
from .frames import join, split

BROKEN = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
DTYPES = {"BOOL": "bool", "BF16": "bfloat16"}  # else F32 is float32, I64 is int64


def batch(data: bytes) -> bytes:
    """A ciphertext batch of whole KiB of residues, with its checksum."""
    body = data[:-CHECKSUM]
    if len(body) < BATCH_HEADER.size:
        return data
    body = body[: len(body) - (len(body) - BATCH_HEADER.size) % (8 * SEGMENT)]
    return body + checksum(body)


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
        secret = base64.b64decode(content["key"])
        digest = hashlib.sha256(DOMAIN + b" key fingerprint" + secret)
        content["fingerprint"] = digest.hexdigest()[:32]
        return json.dumps(content).encode()
    except BROKEN:
        return data


def upload_record(data: bytes) -> bytes:
    """A client's record with its SHA-256; the first byte chooses which record it is."""
    body = data[1:].partition(b"\n")[2]
    if not body:
        return data
    return data[:1] + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def key_sum_request(data: bytes) -> bytes:
    """A list within the context of this client's upload, with this client's own entry."""
    try:
        content = json.loads(data)
        members = content["contributors"]["members"]
        mine = fixed.contributors().members[0].model_dump()
        kept = [each for each in members if each["name"] != mine["name"]]
        ordered = sorted([mine, *kept], key=lambda each: each["name"])
        content |= {"contributors": {"members": ordered}}
        content |= {"context": fixed.update_context().digest.hex()}
        KeySumRequest.model_validate(content)
        return json.dumps(content).encode()
    except BROKEN:
        return data


def opening(header: Any, ciphertext: bytes, key_sum: bytes) -> tuple[Any, bytes]:
    """An aggregate's header with the tags of its ciphertext, and a key sum that can be one."""
    try:
        told = AggregateHeader.model_validate(header)
        bound = _bound(told) if told.rekeyed else told.context.digest
        contributions = _contributions(told, whole=True)
        parameters, key = told.context.parameters, fixed.key()
        tags = expected_tags(ciphertext, parameters, key, bound, contributions)
        if _secret_of(Aggregate(told, ciphertext, key_sum), key) is None:
            ones = np.ones(COEFFICIENTS, np.int64)
            key_sum = put_pads_on(ones, key, _bound(told), _contributions(told))
        return json.loads(told.model_copy(update={"tags": tags}).model_dump_json()), key_sum
    except (*BROKEN, FedSensError):
        return header, key_sum


def tensors(data: bytes) -> bytes:
    """A safetensors file of fedsens with its length field, ciphertext, masks and SHA-256."""
    try:
        (length,) = struct.unpack_from("<Q", data)
        length = length if length <= len(data) - 8 else data.rindex(b"}") - 7
        head = json.loads(data[8 : 8 + length])
        body = bytearray(data[8 + length :])
        places = {
            name: slice(*item.get("data_offsets", (0, 0)))
            for name, item in head.items()
            if name.startswith("fedsens.")
        }
        for name, place in places.items():
            right = mask if "mask" in name else batch if "ciphertext" in name else bytes
            body[place] = right(bytes(body[place]))
        _open_file(head, body, places)
        head["__metadata__"]["sha256"] = _checksum(head, body)
        text = json.dumps(head).encode()
        return struct.pack("<Q", len(text)) + text + bytes(body)
    except (*BROKEN, struct.error):
        return data


def _open_file(head: dict[str, Any], body: bytearray, places: dict[str, slice]) -> None:
    """Tags and key sum of the model in a file, if it has any."""
    own = json.loads(head["__metadata__"]["fedsens"])
    model = own.get("model", own)
    if model.get("aggregate"):
        values, key_sum = places["fedsens.ciphertext"], places["fedsens.key-sum"]
        model["aggregate"], body[key_sum] = opening(
            model["aggregate"], bytes(body[values]), bytes(body[key_sum])
        )
        head["__metadata__"]["fedsens"] = json.dumps(own)


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
    """A model's message (see ``parsers``) whose digests, tags and keys are right."""
    frames = split(data)
    try:
        header = json.loads(frames[0])
        digest = bytes.fromhex(ParameterLayout.from_json(header["layout"]).digest)
        frames[1:3] = [_mask_of(digest, each) for each in frames[1:3]]
        frames[3] = batch(frames[3])
        header["mask"] = frames[1][-32:].hex()
        header["model_mask"] = (frames[2] or frames[1])[-32:].hex()
        if header.get("aggregate"):
            header["aggregate"]["context"] |= {
                "round": header["model_round"],
                "layout": digest.hex(),
                "mask": header["model_mask"],
                "parameters": header["parameters"],
            }
            header["aggregate"], frames[4] = opening(header["aggregate"], *frames[3:5])
        frames[0] = json.dumps(header).encode()
    except (*BROKEN, FedSensError):
        return data
    return join(frames)


def map_sum(data: bytes) -> bytes:
    """A sum of maps whose ciphertext, tags and keys are right."""
    frames = split(data)
    try:
        header = json.loads(frames[0])
        frames[1] = batch(frames[1])
        header["aggregate"], frames[2] = opening(header["aggregate"], *frames[1:3])
        frames[0] = json.dumps(header).encode()
    except BROKEN:
        return data
    return join(frames)


def _mask_of(layout: bytes, data: bytes) -> bytes:
    return mask(data[:24] + layout + data[56:]) if data else data


def update_message(data: bytes) -> bytes:
    """An update's message whose ciphertext, context and weight are right."""
    frames = split(data)
    try:
        header = json.loads(frames[0])
        header["weight"] = struct.unpack("<d", frames[1])[0] / fixed.REFERENCE
        header["context"] = fixed.update_context().digest.hex()
        frames[0] = json.dumps(header).encode()
        frames[2] = batch(frames[2])
    except (*BROKEN, struct.error):
        return data
    return join(frames)
