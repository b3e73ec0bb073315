"""A Flower app on disk: the run config that it declares, and what its bundle takes along."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

import pathspec
from flwr.common.config import flatten_dict

from fedsens.errors import ConfigurationError

IGNORED = ".flwr"  # Flower never packs this folder of an app, nor follows links


@dataclass(frozen=True)
class FlowerApp:
    """A Flower app.

    Attributes:
        folder: where its pyproject.toml lies.
        config: the keys of its run config with their defaults, dotted.
    """

    folder: Path
    config: Mapping[str, Any]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the pyproject.toml in an app's folder.

        Raises:
            ConfigurationError: there is no Flower app.
        """
        path = folder.resolve() / "pyproject.toml"
        try:
            content = tomllib.loads(path.read_text())
        except OSError:
            raise ConfigurationError(
                f"expected a Flower app with a pyproject.toml in {folder.resolve()}, found none; "
                "run the command in the app's folder, or name it"
            ) from None
        except tomllib.TOMLDecodeError as error:
            raise ConfigurationError(f"expected TOML in {path}, got {error}; mend it") from None
        try:
            app = content["tool"]["flwr"]["app"]
            app["components"]
        except (KeyError, TypeError):
            raise ConfigurationError(
                f"expected the components of a Flower app in {path}, found no "
                "[tool.flwr.app.components]; name the folder of an app"
            ) from None
        return cls(folder.resolve(), flatten_dict(app.get("config", {})))

    def declared(self, overrides: Mapping[str, str]) -> dict[str, str]:
        """Those of some overrides whose keys the app declares; Flower refuses a run with others."""
        return {key: value for key, value in overrides.items() if key in self.config}

    def check(self, keys: Iterable[str]) -> None:
        """Check that the app declares all keys, before anything starts.

        Args:
            keys: of the run config.

        Raises:
            ConfigurationError: names those that it does not, with the nearest key that it has.
        """
        unknown = [key for key in keys if key not in self.config]
        if unknown:
            raise ConfigurationError(
                f"expected keys of [tool.flwr.app.config] in {self.folder}/pyproject.toml, got "
                f"{', '.join(map(self._named, unknown))}; correct them, or add them there, because "
                "Flower overrides only keys that an app has"
            )

    def value(self, key: str, overrides: Mapping[str, str]) -> Any:
        """The value of a dotted key in a run; None if neither the app nor an override has it."""
        if key in overrides:
            return tomllib.loads(f"value = {overrides[key]}")["value"]
        return self.config.get(key)

    def packs(self, path: Path) -> bool:
        """Whether Flower would pack files below a folder into the app's bundle."""
        try:
            relative = path.resolve().relative_to(self.folder)
        except ValueError:
            return False
        ignore = self.folder / ".gitignore"
        lines = ignore.read_text().splitlines() if ignore.is_file() else []
        spec = pathspec.GitIgnoreSpec.from_lines([f"{IGNORED}/**", *lines])
        return not spec.match_file(str(relative / "any.py"))

    def outside_of_bundles(self, folder: Path) -> Path:
        """A folder for files that must not be packed into the app's bundles.

        Flower packs whatever lies in an app's folder, results of earlier runs included, until the
        bundle is too large or too deep. A folder that it would pack becomes a link to one below
        ``.flwr``, which Flower leaves out.

        Args:
            folder: where the user wants to find the files.

        Returns:
            The same folder, made.

        Raises:
            ConfigurationError: it is there already and Flower would pack it.
        """
        if self.packs(folder):
            if folder.exists():
                name = folder.resolve().relative_to(self.folder)
                raise ConfigurationError(
                    f"expected a folder for runs that Flower does not pack into the app, got "
                    f"{folder}; add {name}/ to {self.folder}/.gitignore, or give --runs a folder "
                    "elsewhere"
                )
            place = self.folder / IGNORED / folder.resolve().relative_to(self.folder)
            place.mkdir(parents=True, exist_ok=True)
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.symlink_to(place, target_is_directory=True)
        folder.resolve().mkdir(parents=True, exist_ok=True)
        return folder

    def _named(self, key: str) -> str:
        near = get_close_matches(key, self.config, n=1, cutoff=0.7)
        return f"{key} (nearest: {near[0]})" if near else key
