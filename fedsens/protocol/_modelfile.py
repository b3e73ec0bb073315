"""Files of protected models: safetensors with a small header, no pickle."""

from __future__ import annotations

import os

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedsens.crypto import CkksParameters
from fedsens.errors import ProtocolError
from fedsens.files import Arrays, read_checked, write_checked, write_tensors
from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask
from fedsens.protocol._aggregate import Aggregate, AggregateHeader
from fedsens.protocol._fields import check_version
from fedsens.protocol._model import ProtectedModel

FILE_TYPE = "fedsens protected model"
VERSION = 3  # 3: one-time keys
PLAIN = "plain."
MASK, CIPHERTEXT, KEY_SUM = "fedsens.mask", "fedsens.ciphertext", "fedsens.key-sum"


class ModelFileHeader(BaseModel):
    """What a protected model's file says about itself (safetensors metadata, JSON)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str = FILE_TYPE
    version: int = VERSION
    layout: str
    parameters: CkksParameters
    round: int = Field(ge=0)
    aggregate: AggregateHeader | None = None


def save_protected(model: ProtectedModel, path: str | os.PathLike[str]) -> None:
    """Write a protected model; whoever reads the file learns what the server knows.

    Args:
        model: the model.
        path: the file; replaced in one step if it exists.
    """
    write_checked(path, header_of(model).model_dump_json(), tensors_of(model))


def load_protected(path: str | os.PathLike[str]) -> ProtectedModel:
    """Read a file of :func:`save_protected`.

    Args:
        path: the file.

    Returns:
        The model.

    Raises:
        ProtocolError: the file is not an intact protected model.
    """
    text, tensors = read_checked(path, FILE_TYPE)
    check_version(text, FILE_TYPE, VERSION, path)
    try:
        return model_from(ModelFileHeader.model_validate_json(text), tensors)
    except (KeyError, ValidationError) as error:
        raise ProtocolError(
            f"expected an intact {FILE_TYPE} in {path}, got {type(error).__name__}; export it again"
        ) from None


def header_of(model: ProtectedModel) -> ModelFileHeader:
    """What a file says about a model beside its tensors."""
    return ModelFileHeader(
        layout=model.layout.to_json(),
        parameters=model.parameters,
        round=model.round,
        aggregate=None if model.aggregate is None else model.aggregate.header,
    )


def tensors_of(model: ProtectedModel) -> Arrays:
    """A model's tensors as files name them."""
    tensors = {PLAIN + name: np.asarray(array, order="C") for name, array in model.plain.items()}
    tensors[MASK] = np.frombuffer(model.mask.to_bytes(), np.uint8)
    if model.aggregate is not None:
        tensors[CIPHERTEXT] = np.frombuffer(model.aggregate.ciphertext, np.uint8)
        tensors[KEY_SUM] = np.frombuffer(model.aggregate.key_sum, np.uint8)
    return tensors


def model_from(header: ModelFileHeader, tensors: Arrays) -> ProtectedModel:
    """Undo :func:`header_of` and :func:`tensors_of`; KeyError where a tensor is missing."""
    aggregate = None
    if header.aggregate is not None:
        parts = tensors[CIPHERTEXT].tobytes(), tensors[KEY_SUM].tobytes()
        aggregate = Aggregate(header.aggregate, *parts)
    layout = ParameterLayout.from_json(header.layout)
    plain = {n.removeprefix(PLAIN): a for n, a in tensors.items() if n.startswith(PLAIN)}
    known = {t.name: plain.pop(t.name) for t in layout.tensors if t.name in plain}
    return ProtectedModel(
        layout=layout,
        mask=EncryptionMask.from_bytes(tensors[MASK].tobytes()),
        plain=known | plain,  # in the model's order; the constructor refuses what is left over
        aggregate=aggregate,
        parameters=header.parameters,
        round=header.round,
    )


def save_model(arrays: Arrays, path: str | os.PathLike[str]) -> None:
    """Write an opened model as an ordinary safetensors state dict, readable by its owner only.

    Args:
        arrays: name to array.
        path: the file; replaced in one step if it exists.
    """
    write_tensors(path, arrays, {"format": "pt"})
