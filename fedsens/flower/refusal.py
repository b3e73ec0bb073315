"""Clients that refuse the global model itself: a run cannot go on from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flwr.app import Message

from fedsens.errors import ContributorsError, ModelError, PhaseError
from fedsens.flower.client import REFUSED
from fedsens.flower.logs import reason_of

OF_THE_MODEL = (ContributorsError.__name__, ModelError.__name__)


def stop_if_refused(
    answers: Mapping[int, Message], what: str, model_round: int, folder: Path | None
) -> None:
    """End a run whose global model every client that answered refuses.

    Training would never begin again from it, and it would be the run's result. As long as one
    client accepts it the run goes on with those that do.

    Args:
        answers: node to answer, errors included.
        what: the phase, for the error.
        model_round: the round that made the model.
        folder: of the checkpoints, if there are any.

    Raises:
        PhaseError: every answer refuses the model; says how to go back to the one before.
    """
    refusals = [reply for reply in answers.values() if _refuses_model(reply)]
    if not refusals or len(refusals) < len(answers):
        return
    remedy = (
        f"delete round-{model_round:06d}.safetensors in {folder} and resume the run from the "
        "checkpoint before it"
        if folder is not None
        else "start anew, with fedsens.checkpoint-dir to be able to go back"
    )
    raise PhaseError(
        f"expected clients to accept the model of round {model_round} in the {what}, got "
        f"{len(refusals)} refusals and nothing else, the first: "
        f"{reason_of(refusals[0].error)}; {remedy}"
    )


def _refuses_model(reply: Message) -> bool:
    return (
        reply.has_error()
        and reply.error.code == REFUSED
        and str(reply.error.reason).split(":")[0] in OF_THE_MODEL
    )
