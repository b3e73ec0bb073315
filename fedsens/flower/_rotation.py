"""Key rotation: from a round on, the clients use another key, and the old one opens nothing new.

The ciphertext of the model stays as it is. A client that holds both keys makes its tags and the
pads of its key sum anew under the later key: a few kilobytes, whatever the size of the model. What
it returns depends on the model and the keys alone, so a second holder is asked and must agree.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from flwr.app import RecordDict
from flwr.serverapp import Grid

from fedsens.errors import PhaseError, ProtocolError, SumError
from fedsens.flower._agreement import KeyAgreement
from fedsens.flower._phase import Phase, ask_until_two_agree, listed
from fedsens.flower._records import (
    KEY_SUM,
    MODEL_REFUSED,
    REKEY_ACTION,
    REQUEST,
    bytes_to_record,
    put_header,
    record_to_bytes,
    take_header,
)
from fedsens.protocol import KEY_BYTES, Aggregate, ProtectedModel, RekeyReply, RekeyRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedsens.flower._client import Client

logger = logging.getLogger(__name__)

AGREEING = 2  # clients whose word is more than that of one that deviates
Rekeyed = tuple[tuple[int, ...], bytes, str]  # tags, key sum and the mask's certificate


def rekey_model(
    grid: Grid,
    model: ProtectedModel,
    show: Callable[[], RecordDict],
    keys: tuple[KeyAgreement, KeyAgreement],
    phase: int,
    timeout: float,
) -> tuple[ProtectedModel, str, Phase]:
    """Let two clients that hold both keys put the model under the later one; the server's half.

    Returns the model under the later key, the certificate of the mask for the answers, and the
    exchange for the report.

    Raises:
        SumError: two of them find that the model opens for nobody.
        PhaseError: no client could, or they do not agree.
    """
    old, new = keys
    request = RekeyRequest(key_index=new.key_index, fingerprint=new.fingerprint)
    # Two nodes of one client would agree on whatever it likes.
    both = new.distinct(sorted(set(old.examples) & set(new.examples)), grid.get_node_ids())

    def question() -> RecordDict:
        content = show()
        put_header(content, request, REQUEST)
        return content

    failed = "did not put the model under the new key"
    asked = ask_until_two_agree(
        grid, ("rotate", phase), both, question, REKEY_ACTION, timeout, _read, failed
    )
    if asked.answer is not None:
        _warn_of_others(asked.found, asked.answer)
        tags, key_sum, certificate = asked.answer
        return _rekeyed(model, new.fingerprint, tags, key_sum), certificate, asked.phase
    text = (
        f"expected two of {len(both)} clients with both keys to put the model under the new key "
        f"alike, got {len(asked.found)} answers that differ: {listed(asked.reasons)}; mend these, "
        "then resume the run"
    )
    if len(asked.phase.refused(MODEL_REFUSED)) >= AGREEING:
        raise SumError(text)
    raise PhaseError(text)


def _read(content: RecordDict) -> Rekeyed:
    header, key_sum = take_header(content, RekeyReply), record_to_bytes(content, KEY_SUM)
    if len(key_sum) != KEY_BYTES:
        raise ProtocolError(f"expected a key sum of {KEY_BYTES} bytes, got {len(key_sum)}")
    return header.tags, key_sum, header.certificate


def _warn_of_others(found: dict[int, Rekeyed], answer: Rekeyed) -> None:
    for node, other in found.items():
        if other != answer:
            logger.warning(
                "node %s put the model under the new key otherwise than two others; it is not "
                "used: see that client's log and version",
                node,
            )


def _rekeyed(
    model: ProtectedModel, fingerprint: str, tags: tuple[int, ...], key_sum: bytes
) -> ProtectedModel:
    if model.aggregate is None:
        raise ProtocolError("expected an encrypted model to put under a new key, got a plain one")
    header = model.aggregate.header.model_copy(update={"fingerprint": fingerprint, "tags": tags})
    return replace(model, aggregate=Aggregate(header, model.aggregate.ciphertext, key_sum))


def answer_rekey(content: RecordDict, client: Client) -> RecordDict:
    """Make tags and pads of the model anew under a later key; the client's half."""
    model, received = client.receive(content)
    request = take_header(content, RekeyRequest, REQUEST)
    rekeyed = client.rekey(model, received, request)
    answer = RecordDict({KEY_SUM: bytes_to_record(rekeyed.key_sum)})
    certificate = client.certify_again(received, request.key_index)
    put_header(answer, RekeyReply(tags=rekeyed.header.tags, certificate=certificate))
    return answer
