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

from fedsens.errors import FedSensError, PhaseError, ProtocolError
from fedsens.flower._keys import ATTEMPTS, KeyAgreement
from fedsens.flower._phase import Phase, ask, listed
from fedsens.flower._records import (
    KEY_SUM,
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

    Args:
        grid: Flower's grid.
        model: the model under the old key.
        show: makes the content that shows a client this model.
        keys: who holds the old key, and who the later one.
        phase: the server round.
        timeout: deadline for each client that is asked.

    Returns:
        The model under the later key, the certificate of the mask for the answers, and the
        exchange for the report.

    Raises:
        PhaseError: no client could, or they do not agree.
    """
    old, new = keys
    request = RekeyRequest(key_index=new.key_index, fingerprint=new.fingerprint)
    both = sorted(set(old.examples) & set(new.examples))
    found: dict[int, Rekeyed] = {}
    reasons: dict[int, str] = {}
    whole = Phase.of("rotate", phase, REKEY_ACTION, [])
    for node in both[:ATTEMPTS]:
        content = show()
        put_header(content, request, REQUEST)
        asked, answers = ask(grid, ("rotate", phase), {node: content}, REKEY_ACTION, timeout)
        whole.absorb(asked)
        try:
            answer = _read(answers.get(node, RecordDict()))
        except FedSensError as error:
            reasons[node] = asked.reasons().get(node, str(error))
            logger.warning("node %s did not put the model under the new key: %s", node, error)
            continue
        if answer in found.values() or len(both) == 1:
            _warn_of_others(found, answer)
            tags, key_sum, certificate = answer
            return _rekeyed(model, new.fingerprint, tags, key_sum), certificate, whole
        found[node] = answer
    raise PhaseError(
        f"expected two of {len(both)} clients with both keys to put the model under the new key "
        f"alike, got {len(found)} answers that differ: {listed(reasons)}; mend these, then resume "
        "the run"
    )


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
    """Make tags and pads of the model anew under a later key; the client's half.

    Args:
        content: the message's content.
        client: this client, which must hold both keys.

    Returns:
        The answer.
    """
    model, received = client.receive(content)
    request = take_header(content, RekeyRequest, REQUEST)
    rekeyed = client.rekey(model, received, request)
    answer = RecordDict({KEY_SUM: bytes_to_record(rekeyed.key_sum)})
    certificate = client.certify_again(received, request.key_index)
    put_header(answer, RekeyReply(tags=rekeyed.header.tags, certificate=certificate))
    return answer
