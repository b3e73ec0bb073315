"""A named table of functions that users can extend with a decorator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from fedsens.errors import SensitivityError

T = TypeVar("T")


class Registry(Generic[T]):
    """Options of one kind, found by name.

    Args:
        kind: what an entry is (``"loss"``, ``"rule"``); used in error messages.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __getitem__(self, name: str) -> T:
        if not isinstance(name, str) or name not in self._entries:
            allowed = ", ".join(repr(known) for known in sorted(self._entries))
            raise SensitivityError(f"expected a {self.kind} out of {allowed}, got {name!r}")
        return self._entries[name]

    def add(self, name: str, entry: T) -> None:
        """Add an entry.

        Args:
            name: the string that will select it.
            entry: the entry.

        Raises:
            SensitivityError: the name is taken.
        """
        if name in self._entries:
            raise SensitivityError(f"the {self.kind} {name!r} exists already; choose another name")
        self._entries[name] = entry

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator form of :meth:`add`; returns the entry unchanged.

        Args:
            name: the string that will select the entry.

        Returns:
            The decorator.
        """

        def decorate(entry: T) -> T:
            self.add(name, entry)
            return entry

        return decorate
