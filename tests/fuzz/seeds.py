"""Writes the corpus's valid inputs: ``python -m tests.fuzz.seeds``.

The key is made once and stays; the other inputs are made from it and from fixed values.
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
from fedsens.protocol.checkpoint import Checkpoint, Progress, save_checkpoint
from fedsens.protocol.envelope import seal
from fedsens.protocol.export import save_model, save_protected
from fedsens.protocol.keyfile import LockedKey, PublicParameters, ScryptCost
from fedsens.protocol.model import ProtectedModel
from fedsens.protocol.report import PhaseReport
from fedsens.protocol.tagged import encrypt_tagged
from fedsens.protocol.tags import Scope

from fedsens.crypto import Aggregator, CkksParameters, Encryptor, generate_key
from fedsens.files import Arrays
from fedsens.mask import EncryptionMask, partition
from fedsens.protocol import headers
from fedsens.sensitivity import SensitivityMap
from fedsens.sensitivity.mapfile import save_map

from . import fixed
from .frames import join
from .parsers import KINDS


def main() -> None:
    """Write all seeds."""
    if not (fixed.CORPUS / "key" / "seed-key").exists():
        _write("key", "key", generate_key(CkksParameters.preset("compact")).to_bytes())
    for name, make in SEEDS.items():
        for label, data in make().items():
            _write(name, label, data)


def _write(target: str, label: str, data: bytes) -> None:
    folder = fixed.CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"seed-{label}").write_bytes(data)


def batches() -> dict[str, bytes]:
    """Fresh, a sum, and one without values."""
    encrypt = Encryptor(fixed.key()).encrypt
    fresh = encrypt(np.linspace(-1, 1, 4))
    both = Aggregator(fixed.key().parameters).sum([fresh, fresh])
    return {"fresh": fresh, "sum": both, "empty": encrypt(np.empty(0))}


def masks() -> dict[str, bytes]:
    """Some, none and no coordinates."""
    none = EncryptionMask(np.zeros(0, bool), "0" * 64)
    return {"some": fixed.mask().to_bytes(), "none": none.to_bytes()}


def envelopes() -> dict[str, bytes]:
    """A short secret, since the key has a target of its own."""
    sender, recipient = fixed.identities()
    public = recipient.public_key().public_bytes_raw()
    return {"short": seal(b"{}", sender, public, fixed.RUN)}


def locks() -> dict[str, bytes]:
    """A lock that is cheap to try; what it holds is no key, to be short."""
    cost = ScryptCost(n=2, r=1, salt="00" * 16)
    public = PublicParameters.of(fixed.key())
    lock = LockedKey(public=public, scrypt=cost, sealed="")
    cipher = ChaCha20Poly1305(cost.derive(fixed.PASSPHRASE))
    sealed = base64.b64encode(cipher.encrypt(bytes(12), b"{}", lock._context())).decode()
    return {"cheap": lock.model_copy(update={"sealed": sealed}).model_dump_json().encode()}


def publics() -> dict[str, bytes]:
    """Of the fixed key."""
    return {"key": PublicParameters.of(fixed.key()).model_dump_json(indent=2).encode()}


def rosters() -> dict[str, bytes]:
    """Two clients."""
    return {"two": b'["' + b"ab" * 32 + b'",\n"' + b"cd" * 32 + b'"]'}


def kinds() -> dict[str, bytes]:
    """One header of each kind, behind the byte that chooses the kind."""
    sent, public = fixed.sent(), "ab" * 32
    each: list[headers.Header] = [
        sent,
        _update_header(),
        headers.KeyRequest(step="share", parameters=sent.parameters, roster={5: public}),
        headers.KeyReply(public_key=public, fingerprint="ab" * 16, examples=10),
        headers.MapRequest(rule="vector", maps="encrypted", reference=20.0),
        headers.MapReply(samples=10, seconds=0.5, weight=0.5, contributor="5"),
        headers.MaskRequest(policy="sensitivity", ratio=0.1, force=("a.*",), scores=True),
        headers.RotateRequest(generation=1, fingerprint="ab" * 16),
    ]
    chosen = zip(KINDS, each, strict=True)
    return {
        kind.__name__: bytes([i]) + header.to_json().encode()
        for i, (kind, header) in enumerate(chosen)
    }


def layouts() -> dict[str, bytes]:
    """The model's."""
    return {"model": fixed.layout().to_json().encode()}


def _update_header() -> headers.UpdateHeader:
    return headers.UpdateHeader(
        round=3,
        mask=fixed.mask().digest,
        layout=fixed.layout().digest,
        fingerprint=fixed.key().fingerprint,
        weight=0.5,
        contributor="5",
    )


def _protected() -> ProtectedModel:
    plain, masked = partition(fixed.arrays(), fixed.mask(), fixed.layout())
    layout, mask, who = fixed.layout(), fixed.mask(), fixed.contributors()
    scope = Scope("update", who.run, 2, mask.digest, layout.digest, who.reference)
    batches = [
        encrypt_tagged(masked, weight, fixed.key(), scope, name)
        for name, weight in who.summands.items()
    ]
    parameters = fixed.key().parameters
    total = Aggregator(parameters).sum(batches)
    return ProtectedModel(layout, mask, plain, total, who.weight, parameters, 2, who)


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
    model, header = _protected(), fixed.sent()
    none = EncryptionMask(np.zeros(fixed.layout().size, bool), fixed.layout().digest)
    bare = header.model_copy(
        update={"weight": 0.0, "model_mask": none.digest, "contributors": None}
    )
    first = [header.to_json().encode(), fixed.mask().to_bytes(), b"", model.ciphertext or b""]
    second = [bare.to_json().encode(), fixed.mask().to_bytes(), none.to_bytes(), b""]
    return {
        "encrypted": join(first + _pairs(model.plain)),
        "plain": join(second + _pairs(fixed.arrays())),
    }


def updates() -> dict[str, bytes]:
    """An answer; the number of examples is in the place of the model's mask."""
    model = _protected()
    _, masked = partition(fixed.arrays(), fixed.mask(), fixed.layout())
    who, digests = fixed.contributors(), (fixed.mask().digest, fixed.layout().digest)
    scope = Scope("update", who.run, 3, *digests, who.reference)
    ciphertext = encrypt_tagged(masked, 0.5, fixed.key(), scope, "5")
    examples = struct.pack("<d", 10.0)
    frames = [_update_header().to_json().encode(), b"", examples, ciphertext]
    return {"answer": join(frames + _pairs(model.plain))}


def plain_maps() -> dict[str, bytes]:
    """Eight scores."""
    return {"eight": np.arange(8.0).tobytes()}


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
    others = {**rosters(), **publics(), **locks(), **model_files(), **checkpoints()}
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
    "locked": locks,
    "public": publics,
    "roster": rosters,
    "header": kinds,
    "layout": layouts,
    "arrays": records,
    "model-message": models,
    "update-message": updates,
    "plain-map": plain_maps,
    "checkpoint": checkpoints,
    "model-file": model_files,
    "map-file": map_files,
    "inspect": files,
}

if __name__ == "__main__":
    main()
