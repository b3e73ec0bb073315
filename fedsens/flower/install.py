"""install: registers the queries that fedsens asks a client beside training."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedsens.crypto import MAP_PARAMETERS, SecretKey, generate_key
from fedsens.errors import (
    DowngradeError,
    EnvelopeError,
    FedSensError,
    ProtocolError,
    RosterError,
)
from fedsens.flower.client import Client, conceal, refuse
from fedsens.flower.records import (
    ENVELOPES,
    KEYS_ACTION,
    MAP,
    MASK,
    MASK_ACTION,
    PLAIN_MAP,
    REQUEST,
    ROTATE_ACTION,
    SENSITIVITY_ACTION,
    Received,
    bytes_to_record,
    put_header,
    record_to_bytes,
    take_header,
    to_arrays,
)
from fedsens.flower.rotation import encrypt_anew
from fedsens.mask import get_policy, select_mask
from fedsens.protocol.envelope import roster_fingerprint, seal, unseal
from fedsens.protocol.headers import KeyReply, KeyRequest, MapReply, MapRequest, MaskRequest
from fedsens.protocol.tagged import decrypt_tagged, encrypt_tagged

if TYPE_CHECKING:  # it loads torch, for which a server or another framework's client would wait
    from fedsens.sensitivity import SensitivityMap

logger = logging.getLogger(__name__)

SensitivityFn = Callable[[Message, Context], "SensitivityMap"]
ExamplesFn = Callable[[Context], int]


def install(
    app: ClientApp,
    sensitivity: SensitivityFn | None,
    examples: ExamplesFn,
    min_ratio: float = 0.0,
) -> None:
    """Let a ClientApp take part in key agreement, sensitivity maps and masks.

    Mods never see message types without a registered function, so the app registers these next to
    its own ``train`` and ``evaluate``.

    Args:
        app: the ClientApp; its mods must include :class:`SelectiveEncryptionMod`.
        sensitivity: computes this client's map. It gets a message whose ArrayRecord holds the
            whole model (like ``train``) and whose ConfigRecord ``config`` holds ``rule``. None if
            the app is used with policies that need no map only.
        examples: this client's number of training examples.
        min_ratio: as for :class:`SelectiveEncryptionMod`.
    """
    handlers: dict[str, Callable[[Message, Context, Client], RecordDict]] = {
        KEYS_ACTION: lambda message, context, client: _keys(message, client, examples(context)),
        SENSITIVITY_ACTION: lambda message, context, client: _map(
            message, context, client, sensitivity, examples
        ),
        MASK_ACTION: lambda message, _, client: _mask(message, client),
        ROTATE_ACTION: lambda message, _, client: encrypt_anew(message.content, client),
    }
    for action, handler in handlers.items():
        app.query(action)(_guarded(handler, min_ratio))


def _guarded(
    handler: Callable[[Message, Context, Client], RecordDict], min_ratio: float
) -> Callable[[Message, Context], Message]:
    def handle(message: Message, context: Context) -> Message:
        try:
            content = handler(message, context, Client(context, min_ratio))
        except FedSensError as error:
            return refuse(message, error)
        except Exception as error:
            logger.exception("%s failed", message.metadata.message_type)
            return conceal(message, error)
        return Message(content, reply_to=message)

    return handle


def _keys(message: Message, client: Client, examples: int) -> RecordDict:
    request = take_header(message.content, KeyRequest)
    store, generation = client.store, request.generation
    answer = RecordDict()
    if request.step == "hello":
        store.adopt(request.fingerprint, generation)
    elif request.step == "share":
        answer[ENVELOPES] = _share(request, client)
    elif request.step == "accept":
        sender = bytes.fromhex(request.sender)
        store.check_roster([sender])
        envelope = record_to_bytes(message.content, ENVELOPES)
        key = SecretKey.from_bytes(unseal(envelope, store.identity, sender, store.run))
        store.keep(key, [sender], generation)
    held = store.key_of(generation)
    fingerprint = held.fingerprint if held else ""
    if request.step != "hello":
        parties = {*map(bytes.fromhex, [request.sender, *request.roster.values()])} - {b""}
        parties |= {store.public_key} if request.step == "share" else set()
        logger.info("key %s, roster %s", fingerprint, roster_fingerprint(parties))
    public = "" if store.provisioned else store.public_key.hex()
    put_header(answer, KeyReply(public_key=public, fingerprint=fingerprint, examples=examples))
    return answer


def _share(request: KeyRequest, client: Client) -> ConfigRecord:
    store = client.store
    if store.provisioned:
        raise ProtocolError("expected no key agreement, because this client's key is provisioned")
    key = store.key_of(request.generation)
    if key is None and not request.create:
        raise ProtocolError("expected this client to hold the key, got a request but no key")
    admitted = _admitted(request, client)
    if key is None:
        key = generate_key(request.parameters)
        store.keep(key, generation=request.generation)
    store.note_parties(admitted.values(), request.generation)
    secret = key.to_bytes()
    envelopes = ConfigRecord()
    for node, public in admitted.items():
        try:
            envelopes[str(node)] = seal(secret, store.identity, public, store.run)
        except EnvelopeError as error:  # one client's bad key must not stop the others
            logger.warning("no key for node %s: %s", node, error)
        else:
            logger.info("sharing key %s with node %s (%s)", key.fingerprint, node, public.hex())
    return envelopes


def _admitted(request: KeyRequest, client: Client) -> dict[int, bytes]:
    admitted = {}
    for node, public in request.roster.items():
        try:
            client.store.check_roster([bytes.fromhex(public)])
        except RosterError as error:
            logger.warning("no key for node %s: %s", node, error)
        else:
            admitted[node] = bytes.fromhex(public)
    if request.roster and not admitted:
        raise RosterError("expected a client of the pinned roster to share the key with, got none")
    return admitted


def _map(
    message: Message,
    context: Context,
    client: Client,
    sensitivity: SensitivityFn | None,
    examples: ExamplesFn,
) -> RecordDict:
    if sensitivity is None:
        raise ProtocolError("expected a sensitivity function in install(), got None; add one")
    request = take_header(message.content, MapRequest, REQUEST)
    if request.maps == "plain" and not client.settings.allow_plain_maps:
        raise DowngradeError(
            "expected to send an encrypted map, got a request for a plain one; this client allows "
            "it only with fedsens-allow-plain-maps"
        )
    received = client.open(message.content)
    message.content["config"] = ConfigRecord({"rule": request.rule, "round": received.header.round})
    started = time.process_time()
    smap = sensitivity(message, context)
    seconds = time.process_time() - started
    weight = _map_weight(examples(context), request.reference)
    answer = RecordDict()
    contributor = client.store.contributor
    put_header(
        answer,
        MapReply(samples=smap.count, seconds=seconds, weight=weight, contributor=contributor),
    )
    name = PLAIN_MAP if request.maps == "plain" else MAP
    encoded = _encode(smap.flat(received.layout), weight, request, received, client)
    answer[name] = bytes_to_record(encoded)
    logger.info(
        "round %d map: %d samples, %s, %d B up, %.2f s",
        received.header.round,
        smap.count,
        request.maps,
        len(encoded),
        seconds,
    )
    return answer


def _map_weight(examples: int, reference: float) -> float:
    if examples <= 0:
        raise ProtocolError(f"expected a positive number of examples for a map, got {examples}")
    return examples / reference


def _encode(
    flat: np.ndarray, weight: float, request: MapRequest, received: Received, client: Client
) -> bytes:
    if request.maps == "plain":
        return np.asarray(flat * weight, "<f8").tobytes()
    key = client.key_for(received.header)
    if key is None:
        raise ProtocolError("expected a secret key to encrypt the map with, got none")
    return encrypt_tagged(
        np.asarray(flat, np.float64),
        weight,
        key.using(MAP_PARAMETERS),
        client.scope("map", received, request.reference),
        client.store.contributor,
        client.settings.processes,
        received.layout.name_of,
    )


def _mask(message: Message, client: Client) -> RecordDict:
    request = take_header(message.content, MaskRequest, REQUEST)
    batch = record_to_bytes(message.content, MAP) if request.scores else None
    received = client.open(message.content)
    layout = received.layout
    scores = None if batch is None else _scores(batch, request, received, client)
    weights = None
    if "weights" in get_policy(request.policy).needs:
        weights = layout.flatten(to_arrays(message.content.array_records[received.key]))
    mask = select_mask(
        scores,
        layout,
        request.policy,
        request.ratio,
        request.force,
        seed=request.seed,
        weights=weights,
    )
    client.check_mask(mask)
    logger.info(
        "round %d mask: %d of %d parameters by policy %s, digest %s",
        received.header.round,
        mask.k,
        mask.size,
        request.policy,
        mask.digest[:16],
    )
    answer = RecordDict()
    answer[MASK] = bytes_to_record(mask.to_bytes())
    return answer


def _scores(batch: bytes, request: MaskRequest, received: Received, client: Client) -> np.ndarray:
    key, contributors = client.key_for(received.header), request.contributors
    if key is None:
        raise ProtocolError("expected a secret key to open the aggregated map, got none")
    if contributors is None or contributors.moved or contributors.run != client.store.run:
        raise ProtocolError(
            "expected the list of this run's clients whose maps were added, got none"
        )
    scores = decrypt_tagged(
        batch,
        received.layout.size,
        contributors.weight,
        key.using(MAP_PARAMETERS),
        client.scope("map", received, contributors.reference),
        contributors,
        client.settings.min_contributors,
        client.store.members,
    )
    # Below the noise nothing is known: make exact zeros again, so that ties go by index.
    noise = MAP_PARAMETERS.error_bound(len(contributors.names)) / contributors.weight
    scores[scores < noise] = 0.0
    return scores
