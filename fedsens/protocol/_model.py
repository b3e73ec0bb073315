"""ProtectedModel: a model whose masked coordinates exist as a ciphertext only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsens.crypto import CkksParameters
from fedsens.errors import MaskError, ProtocolError
from fedsens.files import Arrays
from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask, as_layout_types, check_plain, combine, with_nan
from fedsens.protocol._aggregate import Aggregate


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
