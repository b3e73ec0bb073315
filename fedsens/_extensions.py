"""What users add by name: policies, losses, attacks, readers, each one decorated function.

An extension is found in one of three ways: its module is imported; an installed package announces
it as an entry point of the group ``fedsens.policies``, ``fedsens.losses``, ``fedsens.attacks`` or
``fedsens.readers``; or a user names its module (``--import MODULE`` on the command line,
``fedsens.import`` in a run config)::

    [project.entry-points."fedsens.policies"]
    saliency = "mine.policies"
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from fedsens.errors import ConfigurationError, FedSensError

T = TypeVar("T")
GROUPS = tuple(f"fedsens.{kind}" for kind in ("policies", "losses", "attacks", "readers"))


class Registry(Generic[T]):
    """Options of one kind, found by name, in the order of their registration."""

    def __init__(
        self, kind: str, group: str | None = None, error: type[FedSensError] = ConfigurationError
    ) -> None:
        """Make an empty registry of what ``kind`` calls, such as ``"mask policy"``.

        The group's entry points of installed packages are loaded when entries are looked up.
        ``error`` is raised for an unknown or a taken name.
        """
        self._kind, self._group, self._error = kind, group, error
        self._entries: dict[str, T] = {}
        self._origins: dict[str, tuple[str, str]] = {}

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(self._entries)

    def __getitem__(self, name: str) -> T:
        known = isinstance(name, str)  # a user's configuration may hold anything
        if known and name not in self._entries:
            self._load()
        if not known or name not in self._entries:
            near = get_close_matches(name, self._entries, n=1, cutoff=0.7) if known else []
            hint = f" (nearest: {near[0]})" if near else ""
            raise self._error(
                f"expected {_with_article(self._kind)} among {', '.join(map(str, self._entries))}, "
                f"got {name!r}{hint}; choose one, or name the module that registers yours: "
                "--import MODULE, or fedsens.import in a run config"
            )
        return self._entries[name]

    def values(self) -> Iterable[T]:
        """All entries."""
        self._load()
        return self._entries.values()

    def add(self, name: str, entry: T, defined_by: object = None) -> None:
        """Add an entry.

        Args:
            name: what users write to choose it.
            entry: the entry.
            defined_by: the function that it was made of, by default itself. The same function,
                from a module that is loaded once more, replaces its entry.

        Raises:
            FedSensError: another entry has the name; of the class that the registry was made with.
        """  # noqa: DOC502 - of a class that is a value
        source = entry if defined_by is None else defined_by
        origin = (getattr(source, "__module__", ""), getattr(source, "__qualname__", ""))
        if name in self._entries and (self._origins[name] != origin or not all(origin)):
            raise self._error(
                f"expected a new name for a {self._kind}, got {name!r}, which exists; choose "
                "another"
            )
        self._entries[name], self._origins[name] = entry, origin

    def register(self, name: str) -> Callable[[T], T]:
        """Decorate a function to add it, unchanged, under the name that users write."""

        def decorate(entry: T) -> T:
            self.add(name, entry)
            return entry

        return decorate

    def _load(self) -> None:
        """Import what installed packages announce; modules that are loaded already cost nothing."""
        group, self._group = self._group, None  # once, and not again while they are loading
        if group is not None:
            _load_entry_points(group, self._error)


def load_extensions(modules: Iterable[str]) -> None:
    """Import modules that register policies, losses, attacks or readers.

    What installed packages announce as entry points comes first.

    Raises:
        ConfigurationError: names every module that cannot be imported, and why.
    """
    for group in GROUPS:
        _load_entry_points(group, ConfigurationError)
    problems = []
    for name in filter(None, map(str.strip, modules)):
        try:
            importlib.import_module(name)
        except (ImportError, SyntaxError, TypeError, ValueError) as error:
            problems.append(f"{name} ({type(error).__name__}: {error})")
    if problems:
        raise ConfigurationError(
            f"expected modules that can be imported, got {'; '.join(problems)}; correct their "
            "names, or make them importable here"
        )


def _with_article(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _load_entry_points(group: str, kind: type[FedSensError]) -> None:
    for point in entry_points(group=group):
        try:
            point.load()
        except (ImportError, AttributeError) as error:
            raise kind(
                f"expected the entry point {point.name} = {point.value} of {group} to load, "
                f"got {type(error).__name__}; mend or uninstall its package",
                str(error),  # which may name folders
            ) from error
