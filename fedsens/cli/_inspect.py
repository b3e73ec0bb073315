"""What is in a file: models, keys and adapters to open, and what ``fedsens inspect`` says of each.

It says parameters and digests, never a secret.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from fedsens._files import (
    UNREADABLE,
    Arrays,
    create_private,
    private_folder,
    read_header,
    read_private,
    sorted_digest,
)
from fedsens.crypto import CkksParameters
from fedsens.errors import (
    ConfigurationError,
    ContributorsError,
    FedSensError,
    KeyFileError,
    KeyMismatchError,
    LayoutError,
    ProtocolError,
)
from fedsens.keys import (
    KEY_TYPE,
    LOCKED_TYPE,
    FederationKey,
    load_identity,
    locked_key_in,
    read_roster,
    roster_fingerprint,
)
from fedsens.protocol import (
    CHECKPOINT_TYPE,
    MODEL_TYPE,
    ProtectedModel,
    load_checkpoint,
    load_protected,
    read_reports,
)
from fedsens.sensitivity import MAP_TYPE, load_map

Facts = dict[str, Any]
TorchState = dict[str, torch.Tensor]
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
UPLOAD_STATE = re.compile(
    r"(?P<kind>update|map)-(?P<round>\d+)\.(?P<step>begun|secret|list|answer)"
)
RECORD = {"round", "model_round", "key_index", "sha256"}
SUMMARY = {"status", "rounds", "ratio", "parameters", "encrypted_parameters"}


def describe(path: Path) -> Facts:
    """Facts about a file by name, the first of which is ``kind``.

    It may be a key file (locked or not), an identity, a protected model, a checkpoint, an opened
    model, a sensitivity map, a roster, the reports or the summary of a run.

    Raises:
        FedSensError: it is none of these, or it is damaged.
    """
    for recognise in (_tensors, _state, _json, _identity, _reports):
        facts = recognise(path)
        if facts is not None:
            return facts
    raise FedSensError(
        f"expected a file of fedsens, got {'another one' if path.is_file() else 'none'} at {path}"
    )


def load_model(path: Path) -> ProtectedModel:
    """The protected model of an export or of a checkpoint; another kind of file is named."""
    kind = _type_in(read_header(path))
    if kind == CHECKPOINT_TYPE:
        return load_checkpoint(path).model
    if kind != MODEL_TYPE and path.is_file():
        try:
            kind = str(describe(path)["kind"])
        except FedSensError:
            kind = "another file"
        raise ProtocolError(
            f"expected a protected model or a checkpoint in {path}, got: {kind}; give what the "
            "server saved, such as protected.safetensors"
        )
    return load_protected(path)


def load_key(path: Path, passphrase: Callable[[], str]) -> FederationKey:
    """The key in a file; if it is locked, the passphrase is asked for."""
    try:
        return FederationKey.load(path, passphrase)
    except KeyFileError:
        try:
            kind = str(describe(path)["kind"])
        except FedSensError:
            kind = ""
        if kind in ("", KEY_TYPE, LOCKED_TYPE):
            raise
        raise KeyFileError(
            f"expected a key of a federation in {path}, got: {kind}; give the file key of a "
            "client's folder, or what fedsens keygen wrote"
        ) from None


def check_fits(
    model: ProtectedModel, key: FederationKey | None, path: Path | None, least: int
) -> None:
    """Refuse what does not open, in the words of whoever opens a file.

    Raises:
        KeyMismatchError: the key is none of this model's, or is missing.
        ContributorsError: the model is of too few clients' updates.
    """
    if model.aggregate is None:
        return
    header = model.aggregate.header
    if key is None or key.fingerprint != header.fingerprint:
        given = "no key" if key is None else f"the key {key.fingerprint} in {path}"
        raise KeyMismatchError(
            f"expected the key {header.fingerprint}, with which this model was encrypted, got "
            f"{given}; give --key the file of a client of the same run, such as "
            "state/run-*/node-*/key beside what fedsens simulate saved; fedsens inspect says "
            "which key a file holds"
        )
    if (clients := len(header.contributors.members)) < least:
        raise ContributorsError(
            f"expected a model of at least {least} clients' updates, got one of {clients}; give "
            f"--min-contributors {clients} to open it all the same"
        )


def read_adapter(folder: Path) -> tuple[bytes, TorchState]:
    """The config's bytes and the tensors, by name, in an adapter's folder."""
    try:
        return (folder / ADAPTER_CONFIG).read_bytes(), load_file(folder / ADAPTER_WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ConfigurationError(
            f"expected the folder of a PEFT adapter with {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS} "
            f"in {folder}, got {type(error).__name__}; write one with save_pretrained "
            "of the model that was trained"
        ) from None


def write_adapter(arrays: Arrays, config: bytes, like: TorchState, out: Path) -> None:
    """Write a new adapter's folder, readable by its owner only.

    ``like`` are the tensors of an adapter with that config, whose names and shapes the arrays must
    have and whose types they get: what was trained in bfloat16 was sent as float32.

    Raises:
        LayoutError: the arrays are not those of such an adapter. Lists what differs.
    """
    sent = {name: tuple(array.shape) for name, array in arrays.items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in like.items()}
    problems = [f"{name} is missing" for name in wanted if name not in sent]
    problems += [f"{name} is unexpected" for name in sent if name not in wanted]
    problems += [
        f"{name}: expected {list(shape)}, got {list(sent[name])}"
        for name, shape in wanted.items()
        if sent.get(name, shape) != shape
    ]
    if problems:
        raise LayoutError(
            "the model is not the adapter whose folder was given: "
            f"{'; '.join(problems)}; clients send get_peft_model_state_dict(model), and the folder "
            "is what save_pretrained of that model writes"
        )
    state = {
        name: torch.from_numpy(array.copy()).to(like[name].dtype) for name, array in arrays.items()
    }
    private_folder(out)
    create_private(out / ADAPTER_WEIGHTS, save(state, {"format": "pt"}))
    create_private(out / ADAPTER_CONFIG, config)


def _state(path: Path) -> Facts | None:
    """A file of a client's state folder that nobody but the client itself reads."""
    if path.name == "key.parties":
        return {"kind": "identities of the clients that share an agreed key"}
    found = UPLOAD_STATE.fullmatch(path.name)
    if found is None or not path.is_file():
        return None
    what = f"a client's own record of its {found['kind']} of round {found['round']}"
    secret = "the secret that opens it" if found["step"] == "secret" else "nothing secret"
    return {"kind": what, "step": found["step"], "holds": secret}


def _tensors(path: Path) -> Facts | None:
    kind = _type_in(read_header(path))
    if kind == MODEL_TYPE:
        return {"kind": kind, **_of_model(load_protected(path)), **_of_file(path)}
    if kind == CHECKPOINT_TYPE:
        return {"kind": kind, **_of_checkpoint(path), **_of_file(path)}
    if kind == MAP_TYPE:
        return {"kind": kind, "private": "as the data that it was made of", **_of_map(path)}
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not iterable
    except UNREADABLE:
        return None
    size = sum(tensor.size for tensor in tensors.values())
    facts = {"kind": "model (safetensors)", "tensors": len(tensors), "parameters": size}
    # What a client compares with fedsens-initial-sha256, whatever the file's own bytes are.
    return {**facts, **_of_file(path), "initial_sha256": sorted_digest(tensors)}


def _of_map(path: Path) -> Facts:
    smap = load_map(path)
    sizes = [value.numel() for value in smap.sums.values()]
    facts = {"samples": smap.count, "tensors": len(sizes), "parameters": sum(sizes)}
    return {**facts, "rule": smap.meta.get("rule"), "halves": smap.halves is not None}


def _identity(path: Path) -> Facts | None:
    """A client's private X25519 key, of which the public half may be shown."""
    try:
        if path.stat().st_size != 32 or path.stat().st_mode & 0o077:
            return None
        public = load_identity(path).public_key().public_bytes_raw().hex()
    except (OSError, FedSensError):
        return None
    return {"kind": "identity of a client (X25519)", "public_key": public}


def _json(path: Path) -> Facts | None:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if isinstance(content, list):
        keys = read_roster(path)
        return {"kind": "roster", "clients": len(keys), "fingerprint": roster_fingerprint(keys)}
    kind = content.get("type") if isinstance(content, dict) else None
    known: dict[Any, Callable[[Path], Facts]] = {
        KEY_TYPE: _of_key,
        LOCKED_TYPE: _of_locked,
    }
    if isinstance(kind, str) and kind in known:
        return {"kind": kind, **known[kind](path)}
    if isinstance(content, dict) and set(content) == RECORD:
        return {"kind": "record of the model that a client opened last", **content}
    if isinstance(content, dict) and set(content) >= SUMMARY:
        names = [*sorted(SUMMARY), "metric", "accuracy", "seconds", "model_sha256"]
        return {"kind": "summary of a run", **{n: content.get(n) for n in names}}
    return None


def _reports(path: Path) -> Facts | None:
    try:
        reports = read_reports(path)
    except (OSError, ValueError):
        return None
    if not reports:
        return None
    last = reports[-1]
    lost = sum(report.lost for report in reports)
    return {"kind": "reports of a run", "rounds": last.round, "lost": lost, "last": str(last)}


def _of_key(path: Path) -> Facts:
    return {"locked": False, "fingerprint": FederationKey.load(path).fingerprint}


def _of_locked(path: Path) -> Facts:
    locked = locked_key_in(read_private(path))
    if locked is None:  # it was one a moment ago
        raise ProtocolError(f"expected a locked key in {path}, got another file")
    cost = locked.scrypt
    return {
        "locked": f"scrypt n={cost.n} r={cost.r} p={cost.p}, ChaCha20-Poly1305",
        "fingerprint": locked.fingerprint,
    }


def _of_model(model: ProtectedModel) -> Facts:
    facts = {
        "round": model.round,
        "tensors": len(model.layout.tensors),
        "parameters": model.layout.size,
        "encrypted_parameters": model.mask.k,
        "ratio": model.mask.ratio,
        "layout": model.layout.digest,
        "mask": model.mask.digest,
        "ckks": _named([model.parameters]),
    }
    if model.aggregate is not None:
        header = model.aggregate.header
        facts |= {
            "contributors": len(header.contributors.members),
            "weight": header.weight,
            "key": header.fingerprint,
            "ciphertext_bytes": len(model.aggregate.ciphertext),
        }
    return facts


def _of_checkpoint(path: Path) -> Facts:
    saved = load_checkpoint(path)
    progress = saved.progress
    return {
        **_of_model(saved.model),
        "round": progress.round,
        "model_round": saved.model.round,
        "next_mask": saved.mask.digest,
        "key_index": progress.key_index,
        "strategy": progress.strategy,
        "options": progress.config,
        "app": progress.app,
    }


def _of_file(path: Path) -> Facts:
    with path.open("rb") as file:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _named(parameters: Iterable[CkksParameters]) -> list[str]:
    return [
        f"{p.name}: N={p.degree}, {p.wire_bytes} bytes a value, range {p.value_range:g}, "
        f"{p.security_bits}-bit security"
        for p in parameters
    ]


def _type_in(header: str | None) -> str | None:
    try:
        return str(json.loads(header)["type"]) if header else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
