"""ProtectedModel: a model whose masked coordinates exist as a ciphertext only; and its files.

A file is safetensors with a small header, no pickle.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedsens._files import Arrays, read_checked, write_checked, write_tensors
from fedsens.crypto import CkksParameters
from fedsens.errors import MaskError, ProtocolError
from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask, as_layout_types, check_plain, combine, with_nan
from fedsens.protocol._aggregate import Aggregate, AggregateHeader

MODEL_TYPE = "fedsens protected model"
MODEL_VERSION = 3  # 3: one-time keys
PLAIN_PREFIX = "plain."
MASK, CIPHERTEXT, KEY_SUM = "fedsens.mask", "fedsens.ciphertext", "fedsens.key-sum"


@dataclass(frozen=True)
class ProtectedModel:
    """The split form of a model: plaintext remainder plus ciphertext.

    The server holds it; nothing here can decrypt.

    Attributes:
        layout: the whole model's layout.
        mask: which coordinates are encrypted.
        plain: name to array. A tensor without masked coordinates keeps its shape; of one with
            masked coordinates only the visible values are there, as a vector in order.
        aggregate: the masked coordinates; None where nothing is encrypted.
        parameters: CKKS parameters of the ciphertext.
        round: the round whose result this is; 0 for an initial model.
    """

    layout: ParameterLayout
    mask: EncryptionMask
    plain: Arrays
    aggregate: Aggregate | None
    parameters: CkksParameters
    round: int = 0

    def __post_init__(self) -> None:
        if self.mask.layout_digest != self.layout.digest:
            raise MaskError("expected a mask for this model's layout, got one for another model")
        if (self.aggregate is None) != (self.mask.k == 0):
            raise ProtocolError(
                f"expected a ciphertext exactly when coordinates are masked, got k={self.mask.k} "
                f"and {'no' if self.aggregate is None else 'a'} ciphertext"
            )
        if self.aggregate is not None:
            self._check_context(self.aggregate)
        check_plain(self.plain, self.layout, self.mask)

    def _check_context(self, aggregate: Aggregate) -> None:
        """An aggregate of another round, mask or model must not pass for this one."""
        context = aggregate.header.context
        told = (context.kind, context.round, context.layout, context.mask, context.parameters)
        mine = ("update", self.round, self.layout.digest, self.mask.digest, self.parameters)
        if told != mine:
            raise ProtocolError(
                "expected a sum of updates of this model's round, layout, mask and parameters, "
                "got another; the server or the file is wrong"
            )

    def opened(self, masked: NDArray[np.floating]) -> Arrays:
        """The whole model in the layout's shapes and types, with its k values decrypted."""
        return as_layout_types(combine(self.plain, masked, self.layout, self.mask), self.layout)

    def visible(self) -> Arrays:
        """What the server knows: the layout's shapes, with NaN at every masked coordinate."""
        return with_nan(self.plain, self.layout, self.mask)


class ModelFileHeader(BaseModel):
    """What a protected model's file says about itself (safetensors metadata, JSON)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: str = MODEL_TYPE
    version: int = MODEL_VERSION
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
    text, tensors = read_checked(path, MODEL_TYPE)
    check_version(text, MODEL_TYPE, MODEL_VERSION, path)
    try:
        return model_from(ModelFileHeader.model_validate_json(text), tensors)
    except (KeyError, ValidationError) as error:
        raise ProtocolError(
            f"expected an intact {MODEL_TYPE} in {path}, got {type(error).__name__}; export it "
            "again"
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
    tensors = {
        PLAIN_PREFIX + name: np.asarray(array, order="C") for name, array in model.plain.items()
    }
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
    plain = {
        n.removeprefix(PLAIN_PREFIX): a for n, a in tensors.items() if n.startswith(PLAIN_PREFIX)
    }
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


def check_version(text: str, kind: str, version: int, path: str | os.PathLike[str]) -> None:
    """Refuse a file, by its header in JSON, of another kind or of another version of fedsens."""
    try:
        header = json.loads(text)
        found = header["type"], header["version"]
    except (ValueError, TypeError, KeyError, RecursionError):
        found = "another file", None
    if found == (kind, version):
        return
    if found[0] == kind:
        raise ProtocolError(
            f"expected a {kind} of version {version} in {path}, got one that another version of "
            "fedsens made; open it with that version"
        )
    raise ProtocolError(f"expected a {kind} in {path}, got another kind of file; check the path")
