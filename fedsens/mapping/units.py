"""Numbers as people write them."""

from __future__ import annotations

import re

from fedsens.errors import ConfigurationError

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def bytes_of(text: str) -> int:
    """A number of bytes.

    Args:
        text: such as ``8GiB``, ``500 MB`` or ``1000000``.

    Returns:
        The number.

    Raises:
        ConfigurationError: the text is none of these.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2] not in UNITS or float(match[1]) == 0:
        raise ConfigurationError(
            f"expected a number of bytes such as 500MB or 8GiB, got {text!r}; the units are "
            f"{', '.join(filter(None, UNITS))}"
        )
    return int(float(match[1]) * UNITS[match[2]])


def rows_of(text: str) -> str | int:
    """The rows of a map.

    Args:
        text: ``auto``, ``exact`` or a number of random probes.

    Returns:
        The same, for :func:`~fedsens.sensitivity_map`.

    Raises:
        ConfigurationError: the text is none of these.
    """
    if text in {"auto", "exact"}:
        return text
    if not text.isdecimal() or int(text) < 1:
        raise ConfigurationError(
            f"expected --rows auto, exact or a number of probes of at least 1, got {text!r}"
        )
    return int(text)
