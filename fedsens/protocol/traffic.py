"""Bytes of a client's messages in a round, and the largest mask within a budget of them."""

from __future__ import annotations

from collections.abc import Callable

from fedsens.crypto import CkksParameters
from fedsens.errors import ConfigurationError
from fedsens.protocol.tags import capacity

FLOAT = 4  # bytes of a plaintext parameter
HEADER = 1000  # bytes of headers and metrics of a message, about


def traffic(
    codec: CkksParameters, size: int, count: int, withheld: bool = False
) -> tuple[float, float]:
    """Bytes that one client sends and gets in a round of training, for a float32 model.

    Args:
        codec: CKKS parameters.
        size: P.
        count: k, how many of them are encrypted.
        withheld: whether clients keep the others.

    Returns:
        Bytes up and bytes down, the mask included.
    """
    padded = -(-count // capacity(codec)) * codec.degree
    visible = FLOAT * (size - count) + HEADER
    up = (HEADER if withheld else visible) + padded * codec.bytes_per_parameter
    return up, visible + size / 8 + padded * codec.bytes_per_parameter_down


def largest_count(size: int, block: int, fits: Callable[[int], bool]) -> int:
    """The largest number of encrypted parameters that fits.

    Costs grow with the number of ciphertexts, so the last of them is full: a number in between
    would cost as much.

    Args:
        size: P.
        block: values in a ciphertext, tags left out.
        fits: whether a number is within the budget; whatever is less must fit too.

    Returns:
        The number.

    Raises:
        ConfigurationError: not even none fits.
    """
    low, high = -1, -(-size // block)  # blocks that fit, and that are possible
    while low < high:
        middle = (low + high + 1) // 2
        if fits(min(size, middle * block)):
            low = middle
        else:
            high = middle - 1
    if low < 0:
        raise ConfigurationError(
            "expected a budget in which plaintext fits, got less; raise it, or take a smaller model"
        )
    return min(size, low * block)


def ratio_within(
    codec: CkksParameters, size: int, megabytes: float, withheld: bool = False
) -> float:
    """The largest ratio whose bytes fit.

    Args:
        codec: CKKS parameters.
        size: P.
        megabytes: of one client in one round, both ways.
        withheld: whether clients keep what is not encrypted.

    Returns:
        The ratio.

    Raises:
        ConfigurationError: no ciphertext fits.
    """
    count = largest_count(
        size, capacity(codec), lambda k: sum(traffic(codec, size, k, withheld)) <= 1e6 * megabytes
    )
    if not count:
        raise ConfigurationError(
            f"expected fedsens.max-mb to have room for one ciphertext beside {size} parameters, "
            f"got {megabytes:g} MB; raise it, or set fedsens.ratio to 0 to switch encryption off"
        )
    return count / size
