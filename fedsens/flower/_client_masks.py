"""A client's half of masks: it makes one as a key holder, and judges the one of each answer."""

from __future__ import annotations

import hmac
import logging
from typing import TYPE_CHECKING

from flwr.app import RecordDict

from fedsens.errors import DowngradeError, FedSensError, ProtocolError
from fedsens.flower._records import (
    MAP,
    MAP_KEY_SUM,
    MASK,
    REQUEST,
    Received,
    bytes_to_record,
    put_header,
    take_aggregate,
    take_header,
    to_arrays,
)
from fedsens.keys import MOVED, certify_mask
from fedsens.mask import get_policy
from fedsens.protocol import MaskOrigin, MaskReply, MaskRequest

if TYPE_CHECKING:
    from fedsens.flower._client import Client

logger = logging.getLogger(__name__)


def answer_mask(content: RecordDict, client: Client) -> RecordDict:
    """Open the sum of the maps and apply the policy, once a round; the client's half.

    Raises:
        DowngradeError: the mask shall leave out what the one in use covers, or be made by another
            policy or ratio than earlier ones.
        ProtocolError: the question is about another round or key.
    """
    received = client.open(content)
    request = take_header(content, MaskRequest, REQUEST)
    origin, header = request.origin, received.header
    if request.moves and not client.settings.moving_masks:
        raise DowngradeError(MOVED)
    if (origin.round, origin.key_index) != (header.round, header.key_index):
        raise ProtocolError("expected a mask of this round and key to be asked for, got another")
    key, origin = client.key_for(header), origin.model_copy(update={"run": client.store.run})
    if not request.moves and not received.mask.covers(received.model_mask):
        # Else the answer would tell how secret values compare with visible ones, which the server
        # writes: a question for each digit would read the model.
        raise DowngradeError(MOVED)
    _check_terms(origin, received, client)
    # The answer is a function of secrets, so it is given once, whatever else is asked for.
    client.records.begin("mask", header.round, bytes.fromhex(received.base))
    layout, scores, weights = received.layout, None, None
    if request.aggregate is not None:
        aggregate = take_aggregate(content, request.aggregate, MAP, MAP_KEY_SUM)
        scores = client.open_map(aggregate, received)
    if "weights" in get_policy(origin.policy).needs:
        weights = layout.flatten(to_arrays(content.array_records[received.key]))
    mask = origin.select(layout, scores, weights)
    client.check_mask(mask)
    if not request.moves:
        mask = mask.union(received.mask)
    logger.info(
        "round %d mask: %d of %d parameters by policy %s, digest %s",
        header.round,
        mask.k,
        mask.size,
        origin.policy,
        mask.digest[:16],
    )
    answer = RecordDict({MASK: bytes_to_record(mask.to_bytes())})
    put_header(answer, MaskReply(certificate=certify_mask(key, origin, mask.digest)))
    return answer


def _check_terms(origin: MaskOrigin, received: Received, client: Client) -> None:
    """Refuse another policy, ratio or seed than before, whatever rounds and runs a server invents.

    The masks of one model at many ratios tell the order of its secret scores. So all models of a
    run get their masks by the same, and a model that came from another run by the same as there.

    Raises:
        DowngradeError: they are others.
    """
    aggregate = received.header.aggregate
    runs = {client.store.run} | ({aggregate.context.run} if aggregate is not None else set())
    if any(client.store.first_terms(run, origin.terms) != origin.terms for run in sorted(runs)):
        raise DowngradeError(
            "expected a mask by the policy, ratio, forced layers and seed of the earlier ones of "
            "this run, got others, which would tell the order of the scores; begin another run"
        )


def check_origin(received: Received, client: Client) -> None:
    """Refuse a mask that no key holder vouches for, and one that shows what another covered.

    A mask that was accepted before needs no second look, and neither does one of everything. What
    needs nothing secret is selected again and compared. A server that opens the sums, as this
    client's owner allows, has no key and no certificate.

    Raises:
        DowngradeError: the mask is not what policy, ratio and seed give, has no certificate of a
            key that this client holds, or leaves out what it must cover.
    """
    mask, header, settings = received.mask, received.header, client.settings
    moves, record = settings.moving_masks, client.store.record
    if header.aggregate is not None and not moves and not mask.covers(received.model_mask):
        raise DowngradeError(MOVED)
    _ = client.store.folder
    if mask.k < mask.size and record.last_mask() != mask.digest:
        origin = header.origin
        if origin is None or not _genuine(received, origin, client):
            raise DowngradeError(
                "expected a mask that the policy gives or that a key holder vouches for, got "
                "another; the server deviates from the protocol, or does not know this client's "
                "key: resume with the key that the mask was made under"
            )
    record.record_mask(mask, moves)


def _genuine(received: Received, origin: MaskOrigin, client: Client) -> bool:
    if not get_policy(origin.policy).needs:
        try:
            chosen = origin.select(received.layout)
        except FedSensError:
            return False
        return chosen == received.mask
    if received.header.opens == "server" or (
        client.settings.allow_plain_maps and not origin.certificate
    ):
        return True
    key = client.store.key_of(origin.key_index)
    return key is not None and hmac.compare_digest(
        certify_mask(key, origin, received.mask.digest), origin.certificate
    )
