"""Encrypting values with tags, and opening a sum of such ciphertexts only if its tags agree."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedsens.crypto import CkksParameters, Decryptor, Encryptor, SecretKey
from fedsens.crypto.packing import NameOf, check_range
from fedsens.errors import ModelError, ProtocolError, ValueRangeError
from fedsens.protocol.contributors import LEAST, Contributors
from fedsens.protocol.tags import TAGS, Floats, Scope, capacity, tagged, unweave, weave


def encrypt_tagged(
    values: NDArray[np.floating],
    weight: float,
    key: SecretKey,
    scope: Scope,
    name: str,
    processes: int = 1,
    name_of: NameOf | None = None,
) -> bytes:
    """Encrypt one contributor's values and tags, times its weight.

    Args:
        values: 1-D, k values.
        weight: the factor.
        key: the key, under the parameters to encrypt with.
        scope: what the tags are bound to.
        name: the contributor.
        processes: as for :class:`~fedsens.crypto.Encryptor`.
        name_of: names the parameter at an index, for errors.

    Returns:
        A batch of :func:`~fedsens.protocol.tags.tagged` values.
    """

    def name_woven(index: int) -> str:
        block, place = divmod(index, key.parameters.degree)
        own = block * capacity(key.parameters) + max(place - TAGS, 0)
        return f"value {own}" if name_of is None else name_of(own)

    encryptor = Encryptor(key, processes)
    return encryptor.encrypt(weave(values, key, scope, name), name_woven, weight)


def decrypt_tagged(
    data: bytes,
    count: int,
    weight: float,
    key: SecretKey,
    scope: Scope,
    contributors: Contributors,
    least: int = LEAST,
    members: frozenset[str] | None = None,
) -> Floats:
    """Open a weighted sum, if it is the one that the server states.

    Args:
        data: the batch.
        count: k, how many values it must hold beside the tags.
        weight: the sum of the weights, as the server states it.
        key: the key, under the parameters of the batch.
        scope: what the tags must be bound to.
        contributors: the summands, as the server states them.
        least: the fewest contributors.
        members: names that count, see :meth:`Contributors.check`.

    Returns:
        The weighted mean of the contributors' values.

    Raises:
        ModelError: the sum is outside the range of the parameters.
        ProtocolError: it holds another number of values.
    """
    contributors.check(weight, key.parameters, least, members)
    try:
        total = Decryptor(key).decrypt(data)
    except ValueRangeError as error:
        raise ModelError(str(error)) from None
    expected = tagged(count, key.parameters)
    if total.size != expected:
        raise ProtocolError(
            f"expected a ciphertext of {count} values, as the mask says, and their tags "
            f"({expected}), got {total.size}"
        )
    values = unweave(total, key, scope, contributors.summands)
    values /= weight
    return values


def check_values(
    values: NDArray[np.floating], parameters: CkksParameters, name_of: NameOf | None = None
) -> None:
    """Refuse values that no mean may hold: the check is before the weight, so it holds for means.

    Args:
        values: 1-D; blocks of :func:`~fedsens.protocol.tags.capacity` values.
        parameters: with the range R.
        name_of: names the parameter at an index, for errors.
    """

    def shifted(index: int) -> str:
        return f"value {low + index}" if name_of is None else name_of(low + index)

    step = capacity(parameters)
    for low in range(0, len(values), step):
        check_range(values[low : low + step], parameters, shifted)


def check_mean(values: Floats, parameters: CkksParameters, clients: int, weight: float) -> None:
    """Refuse a mean that honest clients, who passed :func:`check_values`, could not have made.

    The root mean square of a block of a weighted mean is at most the largest one of its summands
    (convexity), so at most R, plus the codec's error. A single value may exceed R, as it may in a
    client's own update.

    Args:
        values: the decrypted mean.
        parameters: of the ciphertext.
        clients: how many were added.
        weight: the sum of their weights, by which the error was divided, too.

    Raises:
        ModelError: a block is beyond.
    """
    limit = parameters.value_range + parameters.error_bound(clients) / weight
    step = capacity(parameters)
    blocks = [values[low : low + step] for low in range(0, len(values), step)]
    energies = [float(block @ block) for block in blocks]
    beyond = sum(not energy <= parameters.degree * limit**2 for energy in energies)
    if beyond:
        raise ModelError(
            f"expected every block of the mean within the range {parameters.value_range:g}, got "
            f"{beyond} of {len(blocks)} outside; a client or the server deviates from the protocol"
        )
