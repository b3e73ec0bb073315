"""ProtectedModel: a model whose masked coordinates exist as a ciphertext only."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedsens.crypto import CkksParameters, SecretKey
from fedsens.errors import MaskError, ProtocolError
from fedsens.files import Arrays
from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask, as_layout_types, check_plain, combine, with_nan
from fedsens.protocol.contributors import LEAST, Contributors
from fedsens.protocol.tagged import check_mean, decrypt_tagged
from fedsens.protocol.tags import Scope


@dataclass(frozen=True)
class ProtectedModel:
    """The split form of a model: plaintext remainder plus ciphertext.

    Attributes:
        layout: the whole model's layout.
        mask: which coordinates are encrypted.
        plain: name to array. A tensor without masked coordinates keeps its shape; of one with
            masked coordinates only the visible values are there, as a vector in order.
        ciphertext: the masked coordinates with their tags, times ``weight``; None where nothing is
            encrypted.
        weight: sum of the weights in the ciphertext.
        parameters: CKKS parameters of the ciphertext.
        round: the round whose result this is; 0 for an initial model.
        contributors: who went into the ciphertext; None where nothing is encrypted.
    """

    layout: ParameterLayout
    mask: EncryptionMask
    plain: Arrays
    ciphertext: bytes | None
    weight: float
    parameters: CkksParameters
    round: int = 0
    contributors: Contributors | None = None

    def __post_init__(self) -> None:
        if self.mask.layout_digest != self.layout.digest:
            raise MaskError("expected a mask for this model's layout, got one for another model")
        if (self.ciphertext is None) != (self.mask.k == 0):
            raise ProtocolError(
                f"expected a ciphertext exactly when coordinates are masked, got k={self.mask.k} "
                f"and {'no' if self.ciphertext is None else 'a'} ciphertext"
            )
        if (self.ciphertext is None) != (self.contributors is None):
            raise ProtocolError("expected a list of contributors exactly with a ciphertext")
        if self.ciphertext is not None and not 0 < self.weight < math.inf:
            raise ProtocolError("expected a positive, finite weight of the ciphertext, got another")
        check_plain(self.plain, self.layout, self.mask)

    def open(
        self,
        key: SecretKey | None,
        min_contributors: int = LEAST,
        members: frozenset[str] | None = None,
    ) -> Arrays:
        """Decrypt the masked coordinates and join them with the rest.

        Args:
            key: the shared secret key; may be None where nothing is encrypted.
            min_contributors: the fewest clients whose updates must be in the ciphertext. The
                tags in it tell, so the server cannot pass fewer off as so many.
            members: names that count; None if all do.

        Returns:
            Name to array in the layout's shapes and types.
        """
        if self.ciphertext is None or self.contributors is None:
            return as_layout_types(self.plain, self.layout)
        return self.opened(self.decrypt(key, min_contributors, members))

    def decrypt(
        self,
        key: SecretKey | None,
        min_contributors: int = LEAST,
        members: frozenset[str] | None = None,
    ) -> NDArray[np.float64]:
        """Decrypt the masked coordinates of an aggregate that is what it claims to be.

        Args:
            key: the shared secret key.
            min_contributors: see :meth:`open`.
            members: see :meth:`open`.

        Returns:
            The k values.

        Raises:
            ProtocolError: there is no ciphertext or no key. An aggregate that is not what it
                claims is a ContributorsError or a ModelError.
        """
        if self.ciphertext is None or self.contributors is None:
            raise ProtocolError("expected an encrypted model to decrypt, got a plain one")
        if key is None:
            raise ProtocolError("expected a secret key to open an encrypted model, got none")
        mean = decrypt_tagged(
            self.ciphertext,
            self.mask.k,
            self.weight,
            key.using(self.parameters),
            self.scope(self.contributors),
            self.contributors,
            min_contributors,
            members,
        )
        check_mean(mean, self.parameters, len(self.contributors.summands), self.weight)
        return mean

    def opened(self, masked: NDArray[np.float64]) -> Arrays:
        """The whole model.

        Args:
            masked: the k values, decrypted.

        Returns:
            Name to array in the layout's shapes and types.
        """
        return as_layout_types(combine(self.plain, masked, self.layout, self.mask), self.layout)

    def scope(self, contributors: Contributors) -> Scope:
        """What the tags of this model's ciphertext are bound to."""
        return Scope(
            kind="moved" if contributors.moved else "update",
            run=contributors.run,
            round=self.round,
            mask=self.mask.digest,
            layout=self.layout.digest,
            reference=contributors.reference,
        )

    def visible(self) -> Arrays:
        """What the server knows: the layout's shapes, with NaN at every masked coordinate."""
        return with_nan(self.plain, self.layout, self.mask)
