"""Which fields of a record are wrong, in words that cannot do harm in a log."""

from __future__ import annotations

import re

from pydantic import ValidationError

MANY = 20  # problems beyond which they are not listed
NAME = re.compile("[A-Za-z0-9_-]{1,40}")


def wrong_fields(error: ValidationError) -> str:
    """Name the fields that a validation refused.

    The names can be the sender's: one that is not a plain word could forge lines of a log, and
    many could fill it.

    Args:
        error: what pydantic raised.

    Returns:
        The names; "content" where they are not plain words, too many or none.
    """
    if error.error_count() > MANY:
        return "content"
    details = error.errors(include_url=False, include_context=False, include_input=False)
    names = {str(item["loc"][0]) for item in details if item["loc"]}
    plain = {name if NAME.fullmatch(name) else "content" for name in names}
    return ", ".join(sorted(plain)) or "content"
