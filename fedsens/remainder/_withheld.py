"""Withheld: the remainder stays at the client, which adds it to what it sends later.

Error feedback (Seide et al. 2014; Stich et al. 2018): what an answer leaves out is added to the
next one. Between two answers it lies in the client's folder, and a run that continues another one
finds it again.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedsens._files import Arrays, read_checked, read_header, write_checked
from fedsens.errors import CheckpointError
from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask, partition
from fedsens.remainder._terms import Leaving, RemainderPolicy, register_remainder

logger = logging.getLogger(__name__)

Flat = NDArray[np.floating]
RESIDUAL_TYPE, RESIDUAL_FILE = "fedsens residual", "residual.safetensors"
BEFORE, AFTER = "before", "after"


@register_remainder
class Withheld(RemainderPolicy):
    """Nothing visible leaves, and the server's remainder stays as it is."""

    name: ClassVar = "withheld"
    protection: ClassVar = 2
    sends_plain: ClassVar = False
    masks_grow: ClassVar = True
    covers_integers: ClassVar = True

    def protect(
        self,
        before: Arrays | None,
        after: Arrays,
        mask: EncryptionMask,
        layout: ParameterLayout,
        server_round: int,
        folder: Path,
        max_epsilon: float = math.inf,
    ) -> Leaving:
        """Add what earlier answers left out to the masked values, and keep the rest."""
        received, trained = layout.flatten(self._received(before)), layout.flatten(after)
        experiment = self.terms.experiment
        residual = load_residual(folder, experiment, layout, server_round)
        sent, kept = error_feedback(received, trained, residual, mask)

        def commit() -> None:
            save_residual(folder, experiment, layout, server_round, residual, kept)
            logger.info(
                "round %d remainder: %d parameters withheld, for later rounds",
                server_round,
                layout.size - mask.k,
            )

        return Leaving(None, sent, commit)

    def stand_in(
        self, visible: Arrays, mask: EncryptionMask, layout: ParameterLayout
    ) -> Arrays | None:
        """The global model's own remainder.

        The mask has grown only, so the server knows every coordinate that is not in it.
        """
        return partition(visible, mask, layout)[0] if mask.k else None

    def describe(self) -> str:
        """That nothing is sent, and what follows."""
        return "plaintext remainder: withheld, so that masks can only grow"


def error_feedback(
    received: Flat, trained: Flat, residual: Flat, mask: EncryptionMask
) -> tuple[Flat, Flat]:
    """Split an update together with what was left out before; all vectors have length P.

    With u = trained - received, the masked coordinates of received + u + residual are sent and the
    others of u + residual are kept. So the sum of what was sent and kept is the sum of all updates.
    If an answer is lost on its way, what it carried is lost with it, as in plain federated
    learning; what is kept is not.

    Returns:
        The k values to send, and the new residual, of length P and 0 where the mask is.
    """
    # received + u + residual. What is sent leaves nothing behind; the rest waits for a mask.
    whole = trained + residual
    return whole[mask.selected], np.where(mask.selected, whole.dtype.type(0), whole - received)


class ResidualHeader(BaseModel):
    """Header of the residual's file.

    Attributes:
        type: what the file is.
        experiment: name of the run and of those that continue it.
        layout: digest of the model's layout.
        round: the round whose answer left the residual ``after``, and found it ``before``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["fedsens residual"] = "fedsens residual"
    experiment: str = Field(pattern="^[0-9a-f]{32}$")
    layout: str
    round: int = Field(ge=1)


def load_residual(
    folder: Path, experiment: str, layout: ParameterLayout, server_round: int
) -> Flat:
    """What this client has withheld before its answer to a round: P values, or zeros.

    A round that was answered before starts from the same residual again, so that it is not added
    twice.

    Raises:
        CheckpointError: the file is damaged, or of another model.
    """
    path = _find(folder, experiment)
    if path is None:
        return np.zeros(layout.size, layout.dtype)
    note, tensors = _read(path)
    kept = [tensors.get(name, np.zeros(0)) for name in (BEFORE, AFTER)]
    fits = all(each.shape == (layout.size,) and each.dtype == layout.dtype for each in kept)
    if note.layout != layout.digest or not fits:
        raise CheckpointError(
            f"expected a residual of this run's model in {path}, got one of another; delete it to "
            "go on without what was withheld"
        )
    if note.round > server_round:
        logger.warning(
            "round %d: what was withheld up to round %d is dropped, because the run went back",
            server_round,
            note.round,
        )
        return np.zeros(layout.size, layout.dtype)
    # The same round again begins with what it found, a later one with what that round left.
    return kept[note.round < server_round]


def save_residual(
    folder: Path,
    experiment: str,
    layout: ParameterLayout,
    server_round: int,
    before: Flat,
    after: Flat,
) -> None:
    """Keep what is withheld; whoever reads the file learns this client's update."""
    note = ResidualHeader(experiment=experiment, layout=layout.digest, round=server_round)
    tensors = {BEFORE: np.asarray(before), AFTER: np.asarray(after)}
    write_checked(folder / RESIDUAL_FILE, note.model_dump_json(), tensors)


def _find(folder: Path, experiment: str) -> Path | None:
    """The file of this client, in this run or in the last one that it continues."""
    own = folder / RESIDUAL_FILE
    if own.exists() and _experiment_of(own) in {experiment, None}:
        return own  # a damaged one is for the reader to refuse
    found = [
        path
        for path in folder.parent.parent.glob(f"run-*/node-*/{RESIDUAL_FILE}")
        if path.parent.parent != folder.parent and _experiment_of(path) == experiment
    ]
    # Node numbers may have changed since, which is no matter where only one node kept something.
    mine = [path for path in found if path.parent.name == folder.name]
    alone = found if len({path.parent.name for path in found}) == 1 else []
    if found and not (mine or alone):
        logger.warning(
            "none of %d files %s of the earlier run is known as ours", len(found), RESIDUAL_FILE
        )
    return max(mine or alone, key=lambda path: path.stat().st_mtime_ns, default=None)


def _experiment_of(path: Path) -> str | None:
    try:
        return ResidualHeader.model_validate_json(read_header(path) or "").experiment
    except ValidationError:
        return None


def _read(path: Path) -> tuple[ResidualHeader, Arrays]:
    text, tensors = read_checked(path, RESIDUAL_TYPE, CheckpointError)
    try:
        return ResidualHeader.model_validate_json(text), tensors
    except ValidationError:
        raise CheckpointError(
            f"expected a {RESIDUAL_TYPE} file in {path}, got another; delete it to begin anew"
        ) from None
