"""ProtectedModel: a model whose masked coordinates exist as a ciphertext only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsens.crypto import CkksParameters, SecretKey
from fedsens.errors import LayoutError, MaskError, ProtocolError
from fedsens.files import Arrays
from fedsens.layout import Entry, ParameterLayout
from fedsens.mask import EncryptionMask
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
            return self._typed(self.plain)
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
        return self._typed(join(self.plain, masked, self.layout, self.mask))

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
        return join(self.plain, np.full(self.mask.k, np.nan), self.layout, self.mask)

    def _typed(self, arrays: Arrays) -> Arrays:
        # A strategy's mean of an integer buffer is a float; torch truncates it on loading, too.
        return {t.name: arrays[t.name].astype(t.dtype, copy=False) for t in self.layout.tensors}


def split(
    arrays: Mapping[str, NDArray[Any]], mask: EncryptionMask, layout: ParameterLayout
) -> tuple[Arrays, NDArray[np.floating]]:
    """Separate the masked coordinates of a model from the plaintext remainder.

    Args:
        arrays: name to array, exactly of this layout.
        mask: the mask.
        layout: the layout.

    Returns:
        The remainder (see :class:`ProtectedModel`) and the k masked values, in the layout's type.
    """
    plain: Arrays = {}
    masked = np.empty(mask.k, layout.dtype)
    start = 0
    for entry in layout.tensors:
        array = arrays[entry.name]
        selected = None if entry.offset is None else mask.selected[entry.slice]
        if selected is None or not selected.any():
            plain[entry.name] = array
            continue
        flat = array.reshape(-1)
        values = flat[selected]
        masked[start : start + values.size] = values
        start += values.size
        plain[entry.name] = flat[~selected]
    return plain, masked


def join(
    plain: Mapping[str, NDArray[Any]],
    masked: NDArray[np.float64],
    layout: ParameterLayout,
    mask: EncryptionMask,
) -> Arrays:
    """Undo :func:`split`.

    Args:
        plain: the remainder.
        masked: the k masked values.
        layout: the layout.
        mask: the mask.

    Returns:
        Name to array; tensors with masked coordinates in the layout's shape and type.
    """
    arrays: Arrays = {}
    start = 0
    for entry in layout.tensors:
        selected = None if entry.offset is None else mask.selected[entry.slice]
        if selected is None or not selected.any():
            arrays[entry.name] = plain[entry.name]
            continue
        flat = np.empty(entry.size, entry.dtype)
        count = int(np.count_nonzero(selected))
        flat[selected] = masked[start : start + count]
        flat[~selected] = plain[entry.name]
        arrays[entry.name] = flat.reshape(entry.shape)
        start += count
    return arrays


def check_plain(
    plain: Mapping[str, NDArray[Any]], layout: ParameterLayout, mask: EncryptionMask
) -> None:
    """Check that a remainder has the names and sizes that layout and mask leave.

    Args:
        plain: the remainder.
        layout: the layout.
        mask: the mask.

    Raises:
        LayoutError: lists every missing, unexpected or differing tensor.
    """
    expected = {
        entry.name: _plain_shape(entry.shape, None if entry.offset is None else mask.of(entry))
        for entry in layout.tensors
    }
    problems = [f"{name} is missing" for name in expected if name not in plain]
    problems += [f"{name} is unexpected" for name in plain if name not in expected]
    problems += [
        f"{name}: expected shape {list(shape)}, got {list(plain[name].shape)}"
        for name, shape in expected.items()
        if name in plain and tuple(plain[name].shape) != shape
    ]
    if problems:
        raise LayoutError("the plaintext part does not fit layout and mask: " + "; ".join(problems))


def not_finite(arrays: Mapping[str, NDArray[Any]]) -> list[str]:
    """Names of the floating-point arrays that hold a NaN or an infinity."""
    return [n for n, a in arrays.items() if a.dtype.kind == "f" and not np.isfinite(a).all()]


def _plain_shape(shape: tuple[int, ...], selected: NDArray[np.bool_] | None) -> tuple[int, ...]:
    if selected is None or not selected.any():
        return shape
    return (int(selected.size - np.count_nonzero(selected)),)


def tied_apart(
    arrays: Mapping[str, NDArray[Any]], layout: ParameterLayout, mask: EncryptionMask
) -> list[tuple[str, str]]:
    """Pairs of tensors with the same content that the mask treats differently.

    Tied parameters appear under several names in a state dict. A coordinate that is masked under
    one name only would leave in plaintext under the other. Constant tensors are not compared:
    fresh biases and running statistics are equal by chance.

    Args:
        arrays: name to array, exactly of this layout.
        layout: the layout.
        mask: the mask.

    Returns:
        Pairs of names.
    """
    seen: dict[tuple[Any, ...], list[Entry]] = {}
    apart: list[tuple[str, str]] = []
    for entry in layout.entries:
        array = arrays[entry.name]
        if array.size < 2 or (array == array.flat[0]).all():
            continue
        key = (entry.shape, entry.dtype, array.flat[0].item(), array.flat[-1].item())
        for twin in seen.setdefault(key, []):
            same_mask = np.array_equal(mask.of(entry), mask.of(twin))
            if not same_mask and np.array_equal(array, arrays[twin.name]):
                apart.append((twin.name, entry.name))
        seen[key].append(entry)
    return apart
