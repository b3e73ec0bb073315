"""Options: base of what users set, whose wrong values are one error that names all of them."""

from __future__ import annotations

import reprlib
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from fedsens.errors import ConfigurationError

LIKE = 0.6  # difflib's ratio from which on a name counts as a misspelling of another


class Options(BaseModel):
    """Frozen options that may be part of a header.

    Where they come from another party, as a field of a header, the header's own error refuses
    them, which quotes neither names nor values of the sender's.

    Raises:
        ConfigurationError: lists every wrong option.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    _called: ClassVar[str]  # what errors call them, in the plural
    _prefix: ClassVar[str] = ""  # of their names where users write them
    _quotes: ClassVar[bool] = True  # whether errors may quote what was given

    if not TYPE_CHECKING:  # whose constructors have typed arguments

        def __init__(self, /, **options: Any) -> None:
            try:
                super().__init__(**options)
            except ValidationError as error:
                raise self._error(error) from None

        # As pydantic marks its own constructor: what is part of a header is not made by calling it.
        __init__.__pydantic_base_init__ = True

    @classmethod
    def model_validate(cls, obj: Any, **how: Any) -> Self:
        """Make them of a mapping; see pydantic. Every wrong option is listed."""
        try:
            return super().model_validate(obj, **how)
        except ValidationError as error:
            raise cls._error(error) from None

    @classmethod
    def _names(cls) -> list[str]:
        """The names of all options, as users write them, without the prefix."""
        return [field.alias or name for name, field in cls.model_fields.items()]

    @classmethod
    def _error(cls, error: ValidationError) -> ConfigurationError:
        problems = "; ".join(cls._problem(item) for item in error.errors(include_url=False))
        return ConfigurationError(f"{cls._called} are wrong: {problems}")

    @classmethod
    def _problem(cls, item: ErrorDetails) -> str:
        name = ".".join(map(str, item["loc"]))
        if item["type"] == "extra_forbidden":
            return f"{cls._prefix}{name}: {cls._unknown(name)}"
        text = item["msg"].removeprefix("Value error, ")
        if cls._quotes and item["type"] not in ("value_error", "missing"):
            text += f", got {reprlib.repr(item['input'])}"
        return f"{cls._prefix}{name}: {text}" if name else cls._prefix + text

    @classmethod
    def _unknown(cls, name: str) -> str:
        near = get_close_matches(name.replace("_", "-"), cls._names(), n=1, cutoff=LIKE)
        return "no such option" + (f" (nearest: {near[0]})" if near else "")
