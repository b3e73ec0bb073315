"""Checkpoints: the server's state after a round, on disk, so that a run can go on after a crash.

A checkpoint holds what the server knows and nothing else: the plaintext remainder, ciphertexts,
masks and figures. There is no secret key in it, because the server never has one.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedsens._files import Arrays, read_checked, write_checked
from fedsens.errors import CheckpointError, FedSensError
from fedsens.mask import EncryptionMask
from fedsens.protocol._contributors import PublicKey
from fedsens.protocol._headers import MaskOrigin
from fedsens.protocol._model import (
    ModelFileHeader,
    ProtectedModel,
    check_version,
    header_of,
    model_from,
    tensors_of,
)
from fedsens.protocol._report import PhaseReport
from fedsens.remainder import Experiment

logger = logging.getLogger(__name__)

CHECKPOINT_TYPE = "fedsens checkpoint"
CHECKPOINT_VERSION = 3  # 3: one-time keys
NEXT_MASK, INNER = "fedsens.next-mask", "inner."
KEPT_FILES = 2  # the last complete round, and one before it in case the disk damaged the last
FILE_NAME = re.compile(r"round-(\d{6,})\.safetensors")

Figures = dict[int, dict[str, int | float | list[int] | list[float]]]  #: round to metrics


class Progress(BaseModel):
    """How far a run has come and under which conditions.

    Attributes:
        round: the last complete round.
        fingerprint: of the key that the clients share; empty if nothing is encrypted.
        key_index: how often the key has been rotated.
        reference: N_ref of the round.
        experiment: random name of the run and of those that resume it.
        origin: what the mask of the next answers was made of.
        refused: names of the contributors of every sum that clients refused.
        config: the fedsens options that the result depends on.
        app: likewise of the app.
        strategy: name of the inner strategy's class.
        settings: the inner strategy's settings at the start of the run.
        state: its plain attributes that have changed since, and what its arrays are.
        train: metrics of the training of each round.
        evaluate: metrics of the evaluation of each round by clients.
        central: metrics of the evaluation of each round by the server.
        reports: what every phase cost so far.
        random: state of Python's generator, with which Flower samples nodes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    round: int = Field(ge=1)
    fingerprint: str = ""
    key_index: int = Field(default=0, ge=0)
    reference: float = Field(default=1.0, gt=0)
    experiment: Experiment = ""
    origin: MaskOrigin | None = None
    refused: list[list[PublicKey]] = []
    config: dict[str, Any] = {}
    app: dict[str, Any] = {}
    strategy: str = ""
    settings: dict[str, Any] = {}
    state: dict[str, Any] = {}
    train: Figures = {}
    evaluate: Figures = {}
    central: Figures = {}
    reports: list[PhaseReport] = []
    random: tuple[int, list[int], float | None] | None = None


class CheckpointHeader(BaseModel):
    """What a checkpoint says about itself (safetensors metadata, JSON)."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    type: str = CHECKPOINT_TYPE
    version: int = CHECKPOINT_VERSION
    model: ModelFileHeader
    progress: Progress


@dataclass(frozen=True)
class Checkpoint:
    """The server's state after a round.

    Attributes:
        model: the global model, split by the mask of the round that made it.
        mask: what the next answers are split by.
        progress: everything else.
        inner: arrays that the inner strategy keeps between rounds.
    """

    model: ProtectedModel
    mask: EncryptionMask
    progress: Progress
    inner: Arrays = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.mask.layout_digest != self.model.layout.digest:
            raise CheckpointError("expected a mask of the saved model, got one of another model")
        aggregate = self.model.aggregate
        made_with = None if aggregate is None else aggregate.header.fingerprint
        if made_with not in {None, self.progress.fingerprint}:
            raise CheckpointError(
                f"expected a ciphertext under the key {self.progress.fingerprint}, got {made_with}"
            )


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint in one step; whoever reads the file learns what the server knows."""
    tensors = tensors_of(checkpoint.model)
    tensors[NEXT_MASK] = np.frombuffer(checkpoint.mask.to_bytes(), np.uint8)
    tensors |= {INNER + name: array for name, array in checkpoint.inner.items()}
    header = CheckpointHeader(model=header_of(checkpoint.model), progress=checkpoint.progress)
    write_checked(path, header.model_dump_json(), tensors)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Args:
        path: a file of :func:`save_checkpoint`.

    Returns:
        The checkpoint, whose digests are right.

    Raises:
        CheckpointError: the file is not an intact checkpoint.
    """
    try:
        text, tensors = read_checked(path, CHECKPOINT_TYPE)
        check_version(text, CHECKPOINT_TYPE, CHECKPOINT_VERSION, path)
        header = CheckpointHeader.model_validate_json(text)
        return Checkpoint(
            model=model_from(header.model, tensors),
            mask=EncryptionMask.from_bytes(tensors[NEXT_MASK].tobytes()),
            progress=header.progress,
            inner={n.removeprefix(INNER): a for n, a in tensors.items() if n.startswith(INNER)},
        )
    except FedSensError as error:
        raise CheckpointError(str(error)) from None
    except (KeyError, ValidationError) as error:
        raise CheckpointError(
            f"expected an intact {CHECKPOINT_TYPE} in {path}, got {type(error).__name__} on "
            "reading it"
        ) from None


class CheckpointFolder:
    """The checkpoints of one run, the last two of them."""

    def __init__(self, path: Path) -> None:
        """Name the folder, which one run has for itself; nothing is created yet."""
        self.path = path

    def files(self) -> list[Path]:
        """The checkpoints by round, oldest first."""
        found = {path: FILE_NAME.fullmatch(path.name) for path in self.path.glob("round-*")}
        return sorted((p for p, match in found.items() if match), key=_round_of)

    def create(self) -> None:
        """Make the folder for a new run.

        Raises:
            CheckpointError: it holds checkpoints already, or cannot be made.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"expected a folder for checkpoints, got {self.path}: {error.strerror}; "
                "set fedsens.checkpoint-dir to a writable folder"
            ) from None
        if files := self.files():
            raise CheckpointError(
                f"expected no checkpoints in {self.path}, because this run is a new one, got "
                f"{files[-1].name}; set fedsens.resume to continue that run, or choose another "
                "fedsens.checkpoint-dir"
            )

    def save(self, checkpoint: Checkpoint) -> None:
        """Add a checkpoint and drop all but the last two."""
        target = self.path / f"round-{checkpoint.progress.round:06d}.safetensors"
        save_checkpoint(checkpoint, target)
        done = [path for path in self.files() if _round_of(path) <= checkpoint.progress.round]
        for path in done[:-KEPT_FILES]:
            path.unlink(missing_ok=True)

    def latest(self) -> Checkpoint:
        """The newest checkpoint that is intact; a damaged one is passed over with a warning.

        Raises:
            CheckpointError: there is none.
        """
        problems = []
        for path in reversed(self.files()):
            try:
                return load_checkpoint(path)
            except CheckpointError as error:
                problems.append(str(error))
                logger.warning("passed over the checkpoint %s: %s", path.name, error)
        raise CheckpointError(
            f"expected an intact checkpoint in {self.path} to resume from, got "
            f"{'; '.join(problems) or 'none'}; set fedsens.resume to false to start anew"
        )


def _round_of(path: Path) -> int:
    match = FILE_NAME.fullmatch(path.name)
    return int(match[1]) if match else 0
