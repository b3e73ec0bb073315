"""A study on disk: one line for each trial, so that an interrupted one goes on."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsens.audit.trial import Outcome, Trial
from fedsens.errors import ConfigurationError

Known = dict[Trial, tuple[Outcome, Tensor]]


class Record:
    """The outcomes of a study, appended to ``audit.jsonl``.

    Attributes:
        settings: what the outcomes depend on.
        known: trial to outcome and reconstruction.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Open or begin a record.

        Args:
            folder: made if it is missing.
            settings: what the outcomes depend on.

        Raises:
            ConfigurationError: the folder holds a study with other settings.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "audit.jsonl"
        self.settings = dict(settings)
        self.known: Known = {}
        if not self._path.exists():
            self._path.write_text(json.dumps(self.settings) + "\n")
        head, *lines = self._path.read_text().splitlines()
        if json.loads(head) != self.settings:
            raise ConfigurationError(
                f"expected a new folder or the study that is in {folder}, got other settings; "
                "choose another with --out"
            )
        for line in lines:
            outcome, found = _read(line)
            self.known[outcome.trial] = outcome, found

    def add(self, outcome: Outcome, found: Tensor) -> None:
        """Append an outcome.

        Args:
            outcome: of a trial.
            found: its reconstruction, kept in 256 levels.
        """
        levels = (255 * found.nan_to_num(0.5).clamp(0, 1)).round().to(torch.uint8)
        pixels = b64encode(levels.numpy().tobytes()).decode()
        content = asdict(outcome) | {"shape": list(found.shape), "pixels": pixels}
        with self._path.open("a") as file:
            file.write(json.dumps(content) + "\n")
        self.known[outcome.trial] = outcome, levels.float() / 255


def read_record(folder: Path) -> Record:
    """Open a study that is there, whatever its settings.

    Args:
        folder: of the study.

    Returns:
        The record.

    Raises:
        ConfigurationError: there is none.
    """
    path = folder / "audit.jsonl"
    if not path.exists():
        raise ConfigurationError(
            f"expected a study in {folder}, got no audit.jsonl there; run fedsens audit --out "
            f"{folder} first"
        )
    with path.open() as file:
        return Record(folder, json.loads(file.readline()))


def _read(line: str) -> tuple[Outcome, Tensor]:
    content = json.loads(line)
    pixels = np.frombuffer(b64decode(content.pop("pixels")), np.uint8)
    found = torch.from_numpy(pixels.reshape(content.pop("shape")) / np.float32(255))
    trial = Trial(**content.pop("trial"))
    return Outcome(trial=trial, **content), found
