"""Key rotation: the global model moves under a new key, and the old one is used no more.

The server cannot re-encrypt. It brings the clients to the new key as it did to the first one, and
asks one that holds both to decrypt the masked part and encrypt it anew.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
from flwr.app import RecordDict
from flwr.serverapp import Grid

from fedsens.crypto import Aggregator, SecretKey
from fedsens.errors import FedSensError, PhaseError, ProtocolError
from fedsens.flower.agreement import ATTEMPTS, KeyAgreement
from fedsens.flower.client import Client
from fedsens.flower.exchange import Answers, ask
from fedsens.flower.records import (
    CIPHERTEXT,
    REQUEST,
    ROTATE_ACTION,
    Received,
    bytes_to_record,
    put_header,
    record_to_bytes,
    take_header,
    to_arrays,
)
from fedsens.mask import partition
from fedsens.protocol.headers import RotateRequest
from fedsens.protocol.model import ProtectedModel
from fedsens.protocol.tagged import encrypt_tagged
from fedsens.protocol.tags import Scope, tagged

logger = logging.getLogger(__name__)


def move_model(
    grid: Grid,
    model: ProtectedModel,
    content: RecordDict,
    old: KeyAgreement,
    new: KeyAgreement,
    timeout: float,
) -> tuple[ProtectedModel, Answers]:
    """Let a client that holds both keys encrypt the model under the new one; the server's half.

    Args:
        grid: Flower's grid.
        model: the model under the old key.
        content: the message that shows a client this model.
        old: who holds the old key.
        new: who holds the new key.
        timeout: deadline for each client that is tried.

    Returns:
        The model under the new key, and the exchange for the report.

    Raises:
        PhaseError: no client could.
    """
    request = RotateRequest(generation=new.generation, fingerprint=new.fingerprint)
    put_header(content, request, REQUEST)
    both = sorted(set(old.examples) & set(new.examples))
    for node in both[:ATTEMPTS]:
        answers = ask(grid, {node: content}, ROTATE_ACTION, timeout)
        try:
            batch = record_to_bytes(answers.content.get(node, RecordDict()), CIPHERTEXT)
            count = tagged(model.mask.k, model.parameters)
            aggregator = Aggregator(model.parameters, count, new.fingerprint)
            aggregator.add(batch, fresh=True)
        except FedSensError as error:
            logger.warning("node %s did not move the model to the new key: %s", node, error)
            continue
        contributors = model.contributors and model.contributors.after_move()
        moved = replace(
            model, ciphertext=aggregator.result(), weight=1.0, contributors=contributors
        )
        return moved, answers
    raise PhaseError(
        f"expected one of {len(both)} clients with both keys to encrypt the model under the new "
        "key, got none; see the warnings above, then resume the run"
    )


def encrypt_anew(content: RecordDict, client: Client) -> RecordDict:
    """Decrypt a model with the old key and encrypt its masked part with the new one; the client's.

    Args:
        content: the message's content.
        client: this client, which must hold both keys.

    Returns:
        The answer.

    Raises:
        ProtocolError: the new key is not held, or is no later one than the model's.
    """
    request = take_header(content, RotateRequest, REQUEST)
    received = client.open(content)
    if request.generation <= received.header.generation:
        raise ProtocolError(
            f"expected a later key than key {received.header.generation + 1}, got key "
            f"{request.generation + 1}; a rotation goes forward only"
        )
    key = client.store.key_of(request.generation)
    if key is None or key.fingerprint != request.fingerprint:
        raise ProtocolError(
            f"expected the key {request.fingerprint} as key {request.generation + 1} of this run, "
            f"got {key.fingerprint if key else 'none'}; give every client the same keys"
        )
    arrays = to_arrays(content.array_records[received.key])
    _, masked = partition(arrays, received.model_mask, received.layout)
    batch = _encrypt(masked, key, received, client)
    return RecordDict({CIPHERTEXT: bytes_to_record(batch)})


def _encrypt(masked: np.ndarray, key: SecretKey, received: Received, client: Client) -> bytes:
    """Tags say what the aggregate was made of, which :meth:`Client.open` has verified."""
    header = received.header
    if header.contributors is None:
        raise ProtocolError("expected an encrypted model to move to the new key, got a plain one")
    moved = header.contributors.after_move()
    return encrypt_tagged(
        masked,
        moved.weight,
        key.using(header.parameters),
        Scope(
            "moved",
            moved.run,
            header.model_round,
            header.model_mask,
            received.layout.digest,
            moved.reference,
        ),
        moved.digest,
        client.settings.processes,
    )
