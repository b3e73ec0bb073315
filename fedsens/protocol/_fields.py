"""What is wrong with a record, in words that cannot do harm in a log."""

from __future__ import annotations

import json
import os
import re

from pydantic import ValidationError

from fedsens.errors import FedSensError, ProtocolError

MOST_PROBLEMS = 20  # problems beyond which they are not listed
WORD = re.compile("[A-Za-z0-9_-]{1,40}")


def wrong_fields(error: ValidationError) -> str:
    """Name the fields that a validation refused; "content" where that cannot be said safely.

    The names can be the sender's: one that is not a plain word could forge lines of a log, and
    many could fill it.
    """
    if error.error_count() > MOST_PROBLEMS:
        return "content"
    details = error.errors(include_url=False, include_context=False, include_input=False)
    names = {str(item["loc"][0]) for item in details if item["loc"]}
    plain = {name if WORD.fullmatch(name) else "content" for name in names}
    return ", ".join(sorted(plain)) or "content"


def check_version(
    text: str,
    kind: str,
    version: int,
    path: str | os.PathLike[str],
    error: type[FedSensError] = ProtocolError,
) -> None:
    """Refuse a file, by its header in JSON, of another kind or of another version of fedsens."""
    try:
        header = json.loads(text)
        found = header["type"], header["version"]
    except (ValueError, TypeError, KeyError, RecursionError):
        found = "another file", None
    if found == (kind, version):
        return
    if found[0] == kind:
        raise error(
            f"expected a {kind} of version {version} in {path}, got one that another version of "
            "fedsens made; open it with that version"
        )
    raise error(f"expected a {kind} in {path}, got another kind of file; check the path")
