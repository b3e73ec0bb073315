"""A study on disk: one line for each trial, so that an interrupted one goes on."""

from __future__ import annotations

import json
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from fedsens.audit._attack import get_attack
from fedsens.audit._study import AttackStudy
from fedsens.audit._trial import FIRST, NO_ENCRYPTION, Outcome, Protection, Trial
from fedsens.errors import ConfigurationError

Known = dict[Trial, tuple[Outcome, Tensor]]
RECORD = "audit.jsonl"
OUTCOME = TypeAdapter(Outcome)


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
            ConfigurationError: the folder cannot be written, or holds a study with other settings
                or a damaged one.
        """
        self._path = folder / RECORD
        self.settings = dict(settings)
        self.known: Known = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                if not file.tell():
                    file.write(json.dumps(self.settings) + "\n")
        except OSError as error:
            raise ConfigurationError(
                f"expected a folder that can be written, got {folder}: {error.strerror}; choose "
                "another with --out"
            ) from None
        kept = read_settings(folder) or {}
        both = kept.keys() | self.settings.keys()
        if odd := sorted(name for name in both if kept.get(name) != self.settings.get(name)):
            raise ConfigurationError(
                f"expected a new folder or the study that is in {folder}, got other settings "
                f"({', '.join(odd)}); choose another with --out"
            )
        head, *lines = self._path.read_text(errors="replace").splitlines()
        for number, line in enumerate(lines):
            try:
                outcome, found = _read(line)
            except (ValueError, TypeError, KeyError) as error:
                if number < len(lines) - 1:
                    raise ConfigurationError(
                        f"expected the outcome of a trial in line {number + 2} of {self._path}, "
                        f"got {type(error).__name__}; it is damaged: use another --out"
                    ) from None
                self._path.write_text("".join(f"{each}\n" for each in [head, *lines[:-1]]))
                continue  # an interrupted run had begun to write it
            self.known[outcome.trial] = outcome, found

    def add(self, outcome: Outcome, found: Tensor) -> None:
        """Append an outcome.

        Args:
            outcome: of a trial.
            found: its reconstruction, kept in 256 levels.
        """
        shown = found if found.ndim > 1 else found[:0]  # tokens are no picture
        usable = shown.float().nan_to_num(0.5).clamp(0, 1)
        levels = (255 * usable).round().to(torch.uint8)
        pixels = b64encode(levels.numpy().tobytes()).decode()
        content = asdict(outcome) | {"shape": list(shown.shape), "pixels": pixels}
        with self._path.open("a") as file:
            file.write(json.dumps(content) + "\n")
        self.known[outcome.trial] = outcome, levels.float() / 255


def read_settings(folder: Path) -> dict[str, Any] | None:
    """The settings of the study in a folder.

    Args:
        folder: of the study.

    Returns:
        The settings; None where there is no study.

    Raises:
        ConfigurationError: what is there is no study, or a damaged one.
    """
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(errors="replace").partition("\n")[0])
    except (ValueError, OSError):
        content = None
    if not isinstance(content, dict):
        raise ConfigurationError(
            f"expected the settings of a study in line 1 of {path}, got something else; it is "
            "damaged or no audit's: choose another folder, or delete it"
        )
    return content


def _read(line: str) -> tuple[Outcome, Tensor]:
    content = json.loads(line)
    pixels = np.frombuffer(b64decode(content.pop("pixels")), np.uint8)
    found = torch.from_numpy(pixels.reshape(content.pop("shape")) / np.float32(255))
    return OUTCOME.validate_python(content), found


def run_trials(
    study: AttackStudy,
    trials: Iterable[Trial],
    record: Record | None = None,
    minutes: float = 0.0,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Trial]:
    """Run trials one after another, but for those that are known or cannot change a verdict.

    Where an attack has recovered all of a victim under a protection, no other is tried there; with
    nothing encrypted every attack is tried on the first 8 victims nevertheless, to see which work,
    and naive attacks, which no verdict counts, always.

    Args:
        study: the study.
        trials: what to try.
        record: of what is known; outcomes are added.
        minutes: of wall-clock time after which no trial is begun; 0 sets no limit.
        clock: the time in seconds.

    Yields:
        The trials that are done with.
    """
    known = record.known if record else {}
    settled = {place_of(trial) for trial, (outcome, _) in known.items() if _settles(outcome)}
    end = clock() + 60 * minutes if minutes else float("inf")
    for trial in trials:
        if trial not in known and not (place_of(trial) in settled and _is_spared(trial)):
            if clock() >= end:
                return
            found, seconds = study.attack(trial)
            outcome = study.measure(trial, found, seconds)
            if record:
                record.add(outcome, found)
            if _settles(outcome):
                settled.add(place_of(trial))
        yield trial


def place_of(trial: Trial) -> tuple[str, Protection, int]:
    """What a trial has in common with those of other attacks on the same update."""
    return trial.case, trial.protection, trial.image


def _settles(outcome: Outcome) -> bool:
    return outcome.settled and get_attack(outcome.trial.attack).threat != "naive"


def _is_spared(trial: Trial) -> bool:
    """Whether a trial whose victim is recovered already is left out."""
    first = trial.protection == NO_ENCRYPTION and trial.image < FIRST
    return not first and get_attack(trial.attack).threat != "naive"
