"""Writes the corpus's valid inputs: ``python -m tests.fuzz.seeds``.

All are made from fixed values, by the same code as in a federation; encryption is random.
"""

from __future__ import annotations

import base64
import io
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fedsens._files import Arrays
from fedsens.crypto import MAP_PARAMETERS, PRESETS, Aggregator, CkksParameters, Encryptor
from fedsens.crypto._blocks import encrypt_blocks
from fedsens.crypto._wire import FRESH, write_batch
from fedsens.keys import key_answer, make_tags, seal
from fedsens.keys._file import LockedKey, ScryptCost
from fedsens.mask import EncryptionMask, partition
from fedsens.protocol import (
    Aggregate,
    AggregateHeader,
    Checkpoint,
    Contributor,
    Header,
    KeyReply,
    KeyRequest,
    KeySumRequest,
    MapRequest,
    MaskOrigin,
    MaskReply,
    MaskRequest,
    PhaseReport,
    PlainMapHeader,
    Progress,
    ProtectedModel,
    RekeyReply,
    RekeyRequest,
    RoundContext,
    UploadHeader,
    save_model,
    save_protected,
    sum_answers,
    tag_count,
)
from fedsens.protocol._checkpoint import save_checkpoint
from fedsens.sensitivity import SensitivityMap, save_map

from . import fixed
from .frames import join
from .parsers import KINDS, RECORDS, good_records


def main() -> None:
    """Write all seeds."""
    for name, make in SEEDS.items():
        for label, data in make().items():
            _write(name, label, data)


def _write(target: str, label: str, data: bytes) -> None:
    folder = fixed.CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"seed-{label}").write_bytes(data)


def batches() -> dict[str, bytes]:
    """One of each preset, a sum, and one without values."""
    sets = {name: CkksParameters.preset(name) for name in PRESETS}
    values = np.linspace(-1, 1, 4)
    fresh = {name: encrypted(each, values) for name, each in sets.items()}
    both = Aggregator(fixed.PARAMETERS).sum([fresh["compact"], fresh["compact"]])
    return {**fresh, "sum": both, "empty": encrypted(fixed.PARAMETERS, np.empty(0))}


def encrypted(parameters: CkksParameters, values: np.ndarray) -> bytes:
    """A batch under the fixed secret, whose reuse does no harm here."""
    pieces = encrypt_blocks(parameters, fixed.DECRYPTED_IN, fixed.secret(), values)
    return write_batch(parameters, FRESH, len(values), 1, pieces)


def masks() -> dict[str, bytes]:
    """Some, none and no coordinates."""
    none = EncryptionMask(np.zeros(0, bool), "0" * 64)
    return {"some": fixed.mask().to_bytes(), "none": none.to_bytes()}


def envelopes() -> dict[str, bytes]:
    """The key, and what is none."""
    (sender, _), (recipient, _) = fixed.identities()
    public = recipient.public_key().public_bytes_raw()
    secrets = {"key": fixed.key().to_bytes(), "short": b"{}"}
    return {
        name: seal(secret, sender, public, str(fixed.RUN), fixed.KEY_INDEX)
        for name, secret in secrets.items()
    }


def keys() -> dict[str, bytes]:
    """The fixed one."""
    return {"key": fixed.key().to_bytes()}


def locks() -> dict[str, bytes]:
    """A lock that is cheap to try."""
    cost = ScryptCost(n=2, r=1, salt="00" * 16)
    lock = LockedKey(fingerprint=fixed.key().fingerprint, scrypt=cost, sealed="")
    cipher = ChaCha20Poly1305(cost.derive(fixed.PASSPHRASE))
    sealed = cipher.encrypt(bytes(12), fixed.key().to_bytes(), lock._context())
    whole = lock.model_copy(update={"sealed": base64.b64encode(sealed).decode()})
    return {"cheap": whole.model_dump_json().encode(), **keys()}


def rosters() -> dict[str, bytes]:
    """Two clients."""
    return {"two": b'["' + b"ab" * 32 + b'",\n"' + b"cd" * 32 + b'"]'}


def kinds() -> dict[str, bytes]:
    """One header of each kind, behind the byte that chooses the kind."""
    public, tags = "ab" * 32, (1,) * tag_count(fixed.PARAMETERS)
    each: list[Header] = [
        fixed.sent(),
        _update()[0],
        PlainMapHeader(weight=0.5, samples=10, work_seconds=0.5),
        _key_sum_request(),
        KeyRequest(step="share", roster={5: public}, key_index=1),
        KeyReply(name=public, run_key="cd" * 32, fingerprint="ab" * 16, examples=10),
        MapRequest(rule="vector", maps="encrypted"),
        MaskRequest(
            origin=MaskOrigin(
                round=1, policy="sensitivity", ratio=0.1, force=("a.*",), tied=(("a", "b"),)
            )
        ),
        MaskReply(certificate="ab" * 32),
        RekeyRequest(key_index=1, fingerprint="ab" * 16),
        RekeyReply(tags=tags),
    ]
    chosen = zip(KINDS, each, strict=True)
    return {
        kind.__name__: bytes([i]) + header.to_json().encode()
        for i, (kind, header) in enumerate(chosen)
    }


def layouts() -> dict[str, bytes]:
    """The model's."""
    return {"model": fixed.layout().to_json().encode()}


def _update() -> tuple[UploadHeader, bytes]:
    """The header and the ciphertext of one client's answer."""
    _, masked = partition(fixed.arrays(), fixed.mask(), fixed.layout())
    context, name = fixed.update_context(), fixed.cohort()[0].name
    member = Contributor(name=name, weight=0.5, nonce="ab" * 16)
    encryptor = Encryptor(context.parameters, context.digest)
    ciphertext, _ = encryptor.encrypt(masked, scale=member.weight)
    told = context.parameters, fixed.key(), context.digest, member
    header = UploadHeader(
        context=context.digest.hex(),
        name=name,
        weight=member.weight,
        nonce=member.nonce,
        tags=make_tags(ciphertext, *told),
    )
    return header, ciphertext


def summed(values: np.ndarray, context: RoundContext) -> Aggregate:
    """The sum of the fixed clients' uploads, who all have the same values."""
    key, who, parameters = fixed.key(), fixed.contributors(), context.parameters
    uploads, answers, tags = [], [], []
    for identities, party, member in zip(
        fixed.identities(), fixed.cohort(), who.members, strict=True
    ):
        encryptor = Encryptor(parameters, context.digest)
        ciphertext, secret = encryptor.encrypt(values, scale=member.weight)
        others = [each for each in fixed.cohort() if each != party]
        listed = who.digest(context.digest)
        uploads.append(ciphertext)
        answers.append(key_answer(secret.to_array(), identities, others, key, listed))
        tags.append(make_tags(ciphertext, parameters, key, context.digest, member))
    total = tuple(sum(each) % parameters.wire_modulus for each in zip(*tags, strict=True))
    header = AggregateHeader(
        context=context, contributors=who, tags=total, fingerprint=key.fingerprint
    )
    return Aggregate(header, Aggregator(parameters).sum(uploads), sum_answers(answers))


def _protected() -> ProtectedModel:
    plain, masked = partition(fixed.arrays(), fixed.mask(), fixed.layout())
    total = summed(masked, fixed.model_context())
    return ProtectedModel(fixed.layout(), fixed.mask(), plain, total, fixed.PARAMETERS, 2)


def _key_sum_request() -> KeySumRequest:
    return KeySumRequest(
        kind="update",
        round=3,
        context=fixed.update_context().digest.hex(),
        contributors=fixed.contributors(),
    )


def npy(array: np.ndarray) -> bytes:
    """The bytes of a NumPy file."""
    with io.BytesIO() as file:
        np.save(file, array)
        return file.getvalue()


def _pairs(arrays: Arrays) -> list[bytes]:
    return [part for name, array in arrays.items() for part in (name.encode(), npy(array))]


def records() -> dict[str, bytes]:
    """The arrays of the model."""
    return {"model": join(_pairs(fixed.arrays()))}


def models() -> dict[str, bytes]:
    """A message with an encrypted model and one with a plain one."""
    model, sent = _protected(), fixed.sent()
    assert model.aggregate is not None
    header = sent.model_copy(update={"aggregate": model.aggregate.header})
    none = EncryptionMask(np.zeros(fixed.layout().size, bool), fixed.layout().digest)
    bare = sent.model_copy(update={"model_mask": none.digest, "aggregate": None})
    mask, opening = fixed.mask().to_bytes(), [model.aggregate.ciphertext, model.aggregate.key_sum]
    first = [header.to_json().encode(), mask, b"", *opening]
    second = [bare.to_json().encode(), mask, none.to_bytes(), b"", b""]
    return {
        "encrypted": join(first + _pairs(model.plain)),
        "plain": join(second + _pairs(fixed.arrays())),
    }


def updates() -> dict[str, bytes]:
    """An answer."""
    plain, _ = partition(fixed.arrays(), fixed.mask(), fixed.layout())
    header, ciphertext = _update()
    frames = [header.to_json().encode(), struct.pack("<d", 10.0), ciphertext]
    return {"answer": join(frames + _pairs(plain))}


def map_sums() -> dict[str, bytes]:
    """A sum of maps, and a request without one."""
    assert fixed.map_context().parameters == MAP_PARAMETERS
    total = summed(np.arange(fixed.layout().size, dtype=float), fixed.map_context())
    by_maps = MaskOrigin(round=1, policy="sensitivity", ratio=0.1)
    header = MaskRequest(origin=by_maps, aggregate=total.header)
    bare = MaskRequest(origin=MaskOrigin(round=1, policy="random", ratio=0.1))
    return {
        "sum": join([header.to_json().encode(), total.ciphertext, total.key_sum]),
        "none": join([bare.to_json().encode()]),
    }


def plain_maps() -> dict[str, bytes]:
    """Eight scores."""
    header = PlainMapHeader(weight=0.5, samples=10)
    return {"eight": join([header.to_json().encode(), np.arange(8.0).tobytes()])}


def key_sum_requests() -> dict[str, bytes]:
    """The list of both clients."""
    return {"both": _key_sum_request().to_json().encode()}


def key_answers() -> dict[str, bytes]:
    """A padded secret, which nothing distinguishes from any other bytes."""
    padded = np.random.default_rng(0).integers(0, 2**16, 4096).astype("<u2")
    return {"padded": padded.tobytes()}


def upload_records() -> dict[str, bytes]:
    """Each of them, behind the byte that chooses it."""
    return {name: bytes([i]) + good_records()[name] for i, name in enumerate(RECORDS)}


def checkpoints() -> dict[str, bytes]:
    """After round 2, with an array of the inner strategy."""
    progress = Progress(round=2, fingerprint=fixed.key().fingerprint, train={1: {"loss": 0.5}})
    saved = Checkpoint(_protected(), fixed.mask(), progress, {"m": np.zeros(2)})
    return {"round": _saved(lambda path: save_checkpoint(saved, path))}


def model_files() -> dict[str, bytes]:
    """An exported model."""
    return {"model": _saved(lambda path: save_protected(_protected(), path))}


def map_files() -> dict[str, bytes]:
    """A map with its halves."""
    half = SensitivityMap({"w": torch.ones(2, 2), "b": torch.ones(2)}, 3, {"rule": "vector"})
    both = SensitivityMap.from_halves(half, half)
    return {"halves": _saved(lambda path: save_map(both, path))}


def files() -> dict[str, bytes]:
    """What only inspect reads; the rest are other targets' seeds."""
    report = PhaseReport(phase="train", round=1, clients=2, lost=0, seconds=1.0)
    summary = b'{"status":"ok","rounds":1,"ratio":0.1,"parameters":1,"encrypted_parameters":1}'
    line = report.model_dump_json().encode() + b"\n"
    others = {**rosters(), **locks(), **model_files(), **checkpoints()}
    opened = _saved(lambda path: save_model(fixed.arrays(), path))
    return {"reports": line, "summary": summary, "opened": opened, **others}


def _saved(save: Callable[[Path], None]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        save(path)
        return path.read_bytes()


SEEDS: dict[str, Callable[[], dict[str, bytes]]] = {
    "batch": batches,
    "mask": masks,
    "envelope": envelopes,
    "key": keys,
    "locked": locks,
    "roster": rosters,
    "header": kinds,
    "layout": layouts,
    "arrays": records,
    "model-message": models,
    "update-message": updates,
    "map-sum": map_sums,
    "plain-map": plain_maps,
    "key-sum-request": key_sum_requests,
    "key-answer": key_answers,
    "upload-record": upload_records,
    "checkpoint": checkpoints,
    "model-file": model_files,
    "map-file": map_files,
    "inspect": files,
}

if __name__ == "__main__":
    main()
