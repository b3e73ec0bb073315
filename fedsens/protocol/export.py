"""Files of protected models: safetensors with a small header, no pickle."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fedsens.crypto import CkksParameters
from fedsens.errors import FedSensError, ProtocolError
from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask
from fedsens.protocol.model import Arrays, ProtectedModel, digest_of

FILE_TYPE = "fedsens protected model"
PLAIN = "plain."
MASK, CIPHERTEXT = "fedsens.mask", "fedsens.ciphertext"


class ModelFileHeader(BaseModel):
    """What a protected model's file says about itself (safetensors metadata, JSON)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str = FILE_TYPE
    version: int = 1
    layout: str
    parameters: CkksParameters
    weight: float = Field(ge=0, allow_inf_nan=False)
    round: int = Field(ge=0)


def save_protected(model: ProtectedModel, path: str | os.PathLike[str]) -> None:
    """Write a protected model; whoever reads the file learns what the server knows.

    Args:
        model: the model.
        path: the file; replaced in one step if it exists.
    """
    tensors = {PLAIN + name: np.asarray(array, order="C") for name, array in model.plain.items()}
    tensors[MASK] = np.frombuffer(model.mask.to_bytes(), np.uint8)
    if model.ciphertext is not None:
        tensors[CIPHERTEXT] = np.frombuffer(model.ciphertext, np.uint8)
    header = ModelFileHeader(
        layout=model.layout.to_json(),
        parameters=model.parameters,
        weight=model.weight,
        round=model.round,
    )
    text = header.model_dump_json()
    _save(tensors, path, {"fedsens": text, "sha256": _checksum(text, tensors)})


def load_protected(path: str | os.PathLike[str]) -> ProtectedModel:
    """Read a file of :func:`save_protected`.

    Args:
        path: the file.

    Returns:
        The model.

    Raises:
        ProtocolError: the file is not an intact protected model.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            header = ModelFileHeader.model_validate_json(metadata["fedsens"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not iterable
        if (header.type, header.version) != (FILE_TYPE, 1):
            raise ProtocolError(f"expected a {FILE_TYPE} of version 1 in {path}, got another")
        if metadata["sha256"] != _checksum(metadata["fedsens"], tensors):
            raise ProtocolError(f"expected a matching checksum in {path}, got a damaged file")
        ciphertext = tensors.get(CIPHERTEXT)
        return ProtectedModel(
            layout=ParameterLayout.from_json(header.layout),
            mask=EncryptionMask.from_bytes(tensors[MASK].tobytes()),
            plain={n.removeprefix(PLAIN): a for n, a in tensors.items() if n.startswith(PLAIN)},
            ciphertext=None if ciphertext is None else ciphertext.tobytes(),
            weight=header.weight,
            parameters=header.parameters,
            round=header.round,
        )
    except (OSError, SafetensorError, KeyError, ValidationError) as error:
        raise ProtocolError(
            f"expected an intact {FILE_TYPE} in {path}, got {type(error).__name__}; export it again"
        ) from None


def save_model(arrays: Arrays, path: str | os.PathLike[str]) -> None:
    """Write an opened model as an ordinary safetensors state dict, readable by its owner only.

    Args:
        arrays: name to array.
        path: the file; replaced in one step if it exists.
    """
    _save({name: np.asarray(a, order="C") for name, a in arrays.items()}, path, {"format": "pt"})


def _checksum(header: str, tensors: Arrays) -> str:
    # safetensors checks sizes only: a flipped bit of a weight would pass.
    content = digest_of(dict(sorted(tensors.items())))
    return hashlib.sha256(f"{header}|{content}".encode()).hexdigest()


def _save(tensors: Arrays, path: str | os.PathLike[str], metadata: dict[str, str]) -> None:
    target = Path(path)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        draft.touch(mode=0o600)
        save_file(tensors, draft, metadata)
        draft.replace(target)
    except OSError as error:
        raise FedSensError(f"expected to write {target}, got: {error.strerror}") from None
    finally:
        draft.unlink(missing_ok=True)
