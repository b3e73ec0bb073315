"""What a client keeps about a run between its messages, found again in a run that continues it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedsens.errors import CheckpointError
from fedsens.files import Arrays, read_checked, read_header, write_checked
from fedsens.layout import ParameterLayout
from fedsens.protocol.budget import Spent

logger = logging.getLogger(__name__)

Flat = NDArray[np.floating]
RESIDUAL, SPENT = "residual.safetensors", "privacy.safetensors"
BEFORE, AFTER = "before", "after"


class Note(BaseModel):
    """The header of such a file.

    Attributes:
        lineage: name of the run and of those that continue it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lineage: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]


class ResidualNote(Note):
    """Header of the residual.

    Attributes:
        type: what the file is.
        layout: digest of the model's layout.
        round: the round whose answer left the residual ``after``, and found it ``before``.
    """

    type: Literal["fedsens residual"] = "fedsens residual"
    layout: str
    round: int = Field(ge=1)


class SpentNote(Note):
    """Header of the privacy that noised remainders have cost.

    Attributes:
        type: what the file is.
        spent: the cost.
    """

    type: Literal["fedsens privacy"] = "fedsens privacy"
    spent: Spent


N = TypeVar("N", bound=Note)


def load_residual(folder: Path, lineage: str, layout: ParameterLayout, server_round: int) -> Flat:
    """What this client has withheld before its answer to a round.

    Args:
        folder: the client's folder in this run.
        lineage: of the run.
        layout: the model's layout.
        server_round: the round that is to be answered. One that was answered before starts from
            the same residual again, so that it is not added twice.

    Returns:
        A vector of length P; zeros where nothing is known of this run.

    Raises:
        CheckpointError: the file is damaged, or of another model.
    """
    path = _find(folder, RESIDUAL, lineage, ResidualNote)
    if path is None:
        return np.zeros(layout.size, layout.dtype)
    note, tensors = _read(path, ResidualNote)
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
    return kept[note.round < server_round]


def save_residual(
    folder: Path,
    lineage: str,
    layout: ParameterLayout,
    server_round: int,
    before: Flat,
    after: Flat,
) -> None:
    """Keep what is withheld; whoever reads the file learns this client's update.

    Args:
        folder: the client's folder in this run.
        lineage: of the run.
        layout: the model's layout.
        server_round: the round that is being answered.
        before: the residual before, of length P.
        after: the residual after.
    """
    note = ResidualNote(lineage=lineage, layout=layout.digest, round=server_round)
    tensors = {BEFORE: np.asarray(before), AFTER: np.asarray(after)}
    write_checked(folder / RESIDUAL, note.model_dump_json(), tensors)


def spend(folder: Path, lineage: str, cost: Spent) -> Spent:
    """Add to what this client's noised remainders have cost in a run.

    Args:
        folder: the client's folder in this run.
        lineage: of the run.
        cost: of the answer that is about to leave.

    Returns:
        The cost so far, this answer included.
    """
    path = _find(folder, SPENT, lineage, SpentNote)
    spent = cost if path is None else _read(path, SpentNote)[0].spent.plus(cost)
    write_checked(folder / SPENT, SpentNote(lineage=lineage, spent=spent).model_dump_json(), {})
    return spent


def _find(folder: Path, name: str, lineage: str, kind: type[N]) -> Path | None:
    own = folder / name
    if own.exists() and _lineage_of(own, kind) in {lineage, None}:
        return own  # a damaged one is for the reader to refuse
    found = [
        path
        for path in folder.parent.parent.glob(f"run-*/node-*/{name}")
        if path.parent.parent != folder.parent and _lineage_of(path, kind) == lineage
    ]
    # Node numbers may have changed since, which is no matter where only one node kept something.
    mine = [path for path in found if path.parent.name == folder.name]
    alone = found if len({path.parent.name for path in found}) == 1 else []
    if found and not (mine or alone):
        logger.warning("none of %d files %s of the earlier run is known as ours", len(found), name)
    return max(mine or alone, key=lambda path: path.stat().st_mtime_ns, default=None)


def _lineage_of(path: Path, kind: type[N]) -> str | None:
    try:
        return kind.model_validate_json(read_header(path) or "").lineage
    except ValidationError:
        return None


def _read(path: Path, kind: type[N]) -> tuple[N, Arrays]:
    name = kind.model_fields["type"].default
    text, tensors = read_checked(path, name, CheckpointError)
    try:
        return kind.model_validate_json(text), tensors
    except ValidationError:
        raise CheckpointError(
            f"expected a {name} file in {path}, got another; delete it to begin anew"
        ) from None
