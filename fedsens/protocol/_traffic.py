"""Bytes of a client's messages in a round, and the largest mask within a budget of them."""

from __future__ import annotations

from collections.abc import Callable

from fedsens.crypto import CkksParameters, Opens
from fedsens.errors import ConfigurationError
from fedsens.layout import ParameterLayout
from fedsens.protocol._aggregate import KEY_BYTES

FLOAT_BYTES = 4  # bytes of a plaintext float32 parameter
HEADER_BYTES = 1500  # bytes of headers and metrics of a message, about
LISTED_BYTES = 300  # bytes for each client of the cohort and of the list of contributors, about


def traffic(
    codec: CkksParameters,
    size: int,
    count: int,
    *,
    width: float = FLOAT_BYTES,
    withheld: bool = False,
    clients: int = 10,
    opens: Opens = "clients",
) -> tuple[float, float]:
    """Bytes that one client sends and gets in a round of training.

    Args:
        codec: CKKS parameters.
        size: P.
        count: k, how many of them are encrypted.
        width: bytes of a plaintext parameter, the mean over the layout (:func:`mean_width`).
        withheld: whether clients keep the others.
        clients: how many take part in a round.
        opens: who opens the sums; where the server does, the model comes back plain.

    Returns:
        Bytes up and bytes down, with the padded keys and the mask, which is one bit for each
        parameter; a mask of everything or of nothing is told by its digest alone.
    """
    padded = codec.blocks(count) * codec.degree
    visible = width * (size - count) + HEADER_BYTES
    keys = KEY_BYTES if count else 0
    listed = LISTED_BYTES * clients if count else 0
    mask = size / 8 if 0 < count < size else 0
    up = (HEADER_BYTES if withheld else visible) + padded * codec.bytes_per_parameter + keys
    if opens == "server":
        return up, width * size + HEADER_BYTES + mask + listed
    return up, visible + mask + padded * codec.bytes_per_parameter_down + keys + listed


def mean_width(layout: ParameterLayout) -> float:
    """Mean bytes of a floating-point parameter of a model, by its real types."""
    total = sum(entry.size * entry.itemsize for entry in layout.entries)
    return total / layout.size if layout.size else FLOAT_BYTES


def largest_count(size: int, block: int, fits: Callable[[int], bool], least: str = "more") -> int:
    """The largest number of encrypted parameters that fits.

    Costs grow with the number of ciphertexts, so the last of them is full: a number in between
    would cost as much.

    Args:
        size: P.
        block: values in a ciphertext.
        fits: whether a number is within the budget; whatever is less must fit too.
        least: the budget that plaintext needs, for the error.

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
            f"expected a budget in which plaintext fits, which needs {least}, got less; raise "
            "it, or take a smaller model"
        )
    return min(size, low * block)


def ratio_within(
    codec: CkksParameters,
    size: int,
    megabytes: float,
    *,
    width: float = FLOAT_BYTES,
    withheld: bool = False,
    clients: int = 10,
    opens: Opens = "clients",
) -> float:
    """The largest ratio whose bytes fit.

    Args:
        codec: CKKS parameters.
        size: P.
        megabytes: of one client in one round, both ways.
        width: mean bytes of a plaintext parameter.
        withheld: whether clients keep what is not encrypted.
        clients: how many take part in a round.
        opens: who opens the sums.

    Returns:
        The ratio.

    Raises:
        ConfigurationError: no ciphertext fits.
    """

    def cost(count: int) -> float:
        return sum(
            traffic(
                codec, size, count, width=width, withheld=withheld, clients=clients, opens=opens
            )
        )

    # With a wide plaintext type a ciphertext is smaller than what it replaces: the most that fits
    # need not have everything below it fit, so it is looked for from above.
    if cost(size) <= 1e6 * megabytes:
        return 1.0
    count = largest_count(
        size, codec.degree, lambda k: cost(k) <= 1e6 * megabytes, f"{cost(0) / 1e6:.4g} MB"
    )
    if not count:
        raise ConfigurationError(
            f"expected fedsens.max-mb to have room for one ciphertext beside {size} parameters, "
            f"got {megabytes:g} MB; raise it, or set fedsens.ratio to 0 to switch encryption off"
        )
    return count / size
