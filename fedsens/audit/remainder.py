"""What is done to the plaintext remainder before the attacker sees it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from fedsens.audit.trial import PLAIN
from fedsens.errors import ConfigurationError
from fedsens.files import Arrays
from fedsens.remainder import add_noise

WITHHELD = "withheld"
ALIASES = {"noised": "gaussian"}


def remainder_name(text: str) -> str:
    """Check what a user asks for.

    Args:
        text: ``plain``, ``withheld``, ``gaussian:S`` (or ``noised:S``) or ``laplace:S``, where S is
            the noise's standard deviation relative to the root mean square of the visible update.

    Returns:
        The name in one spelling, such as ``gaussian:1``.

    Raises:
        ConfigurationError: it is none of these.
    """
    kind, colon, scale = text.strip().partition(":")
    kind = ALIASES.get(kind, kind)
    if kind in {PLAIN, WITHHELD} and not colon:
        return kind
    try:
        if kind in {"gaussian", "laplace"} and 0 < float(scale) < float("inf"):
            return f"{kind}:{float(scale):g}"
    except ValueError:
        pass
    raise ConfigurationError(
        f"expected plain, withheld, gaussian:S or laplace:S with S above 0, got {text!r}; "
        "write gaussian:1 for noise as large as the remainder's update"
    )


def treated(
    name: str,
    before: Mapping[str, NDArray[Any]],
    after: Mapping[str, NDArray[Any]],
    rng: np.random.Generator,
) -> Arrays | None:
    """The remainder that leaves the client, by the function that the client's mod applies.

    Args:
        name: what is done, see :func:`remainder_name`.
        before: the remainder that was received.
        after: the remainder that was trained.
        rng: of the noise.

    Returns:
        The remainder; None where it is withheld.
    """
    if name == WITHHELD:
        return None
    if name == PLAIN:
        return dict(after)
    kind, _, scale = name.partition(":")
    distribution = cast(Literal["gaussian", "laplace"], kind)
    return add_noise(before, after, distribution, float(scale), rng)


def noise_share(name: str) -> float:
    """How much of what is seen is noise.

    Args:
        name: what is done to the remainder.

    Returns:
        The noise's root mean square relative to that of the noisy update, from 0 to 1.
    """
    scale = float(name.partition(":")[2] or 0)
    return scale / math.hypot(1.0, scale)
