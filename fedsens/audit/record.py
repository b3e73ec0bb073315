"""A study on disk: one line for each trial, so that an interrupted one goes on."""

from __future__ import annotations

import csv
import json
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsens.audit.study import Outcome, Trial
from fedsens.audit.verdict import Line
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


def write_lines(lines: Sequence[Line], settings: Mapping[str, Any], folder: Path) -> None:
    """Write ``audit.json`` and ``audit.csv``.

    Args:
        lines: of the verdict.
        settings: of the study.
        folder: an existing one.
    """
    content = {"settings": dict(settings), "lines": [asdict(line) for line in lines]}
    (folder / "audit.json").write_text(json.dumps(content, indent=1) + "\n")
    with (folder / "audit.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        names = ("policy", "ratio", "attack", "threat", "ssim", "low", "high", "identified")
        writer.writerow([*names, "works"])
        for line in lines:
            spread = (line.ssim.mean, line.ssim.low, line.ssim.high)
            figures = [f"{value:.4f}" for value in (*spread, line.identified)]
            writer.writerow([
                line.policy,
                line.ratio,
                line.attack,
                line.threat,
                *figures,
                line.works,
            ])


def _read(line: str) -> tuple[Outcome, Tensor]:
    content = json.loads(line)
    pixels = np.frombuffer(b64decode(content.pop("pixels")), np.uint8)
    found = torch.from_numpy(pixels.reshape(content.pop("shape")) / np.float32(255))
    trial = Trial(**content.pop("trial"))
    return Outcome(trial=trial, **content), found
