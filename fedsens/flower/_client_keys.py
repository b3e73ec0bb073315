"""A client's half of key agreement: who it is, which key it holds, envelopes for the others."""

from __future__ import annotations

import logging

from fedsens.errors import EnvelopeError, ProtocolError, RosterError
from fedsens.keys import FederationKey, KeyStore, roster_fingerprint, seal, unseal
from fedsens.protocol import KeyReply, KeyRequest

logger = logging.getLogger(__name__)


class KeyHolder:
    """Answers what the server asks about keys, from this client's key store."""

    def __init__(self, store: KeyStore) -> None:
        """Answer from a key store."""
        self._store = store

    def introduce(self, request: KeyRequest, examples: int) -> KeyReply:
        """Who this client is, and which key it holds."""
        store, held = self._store, self._store.key_of(request.key_index)
        fingerprint = held.fingerprint if held else ""
        if request.step != "hello":
            named = {request.sender, *request.roster.values()} - {None}
            parties = {bytes.fromhex(each) for each in named if each}
            parties |= {store.public_key} if request.step == "share" else set()
            logger.info("key %s, roster %s", fingerprint, roster_fingerprint(parties))
        return KeyReply(
            name=store.name,
            run_key=store.run_public_key.hex(),
            provisioned=store.provisioned,
            fingerprint=fingerprint,
            examples=examples,
        )

    def adopt(self, request: KeyRequest) -> None:
        """Take over the key of an earlier run, for a run that continues it."""
        self._store.adopt(request.fingerprint, request.key_index)

    def share(self, request: KeyRequest) -> dict[str, bytes]:
        """Seal the key to clients that may have it; it is made where that is wanted."""
        store = self._store
        if store.provisioned:
            raise ProtocolError(
                "expected no key agreement, because this client's key is provisioned"
            )
        key = store.key_of(request.key_index)
        if key is None and not request.create:
            raise ProtocolError("expected this client to hold the key, got a request but no key")
        admitted = self._admitted(request)
        if key is None:
            key = FederationKey.generate()
            store.keep(key, key_index=request.key_index)
        store.note_parties(admitted.values(), request.key_index)
        secret, envelopes = key.to_bytes(), dict[str, bytes]()
        for node, public in admitted.items():
            try:
                envelopes[str(node)] = seal(
                    secret, store.identity, public, store.run, request.key_index
                )
            except EnvelopeError as error:  # one client's bad key must not stop the others
                logger.warning("no key for node %s: %s", node, error)
            else:
                logger.info("sharing key %s with node %s (%s)", key.fingerprint, node, public.hex())
        return envelopes

    def _admitted(self, request: KeyRequest) -> dict[int, bytes]:
        admitted = {}
        for node, public in request.roster.items():
            try:
                self._store.check_roster([bytes.fromhex(public)])
            except RosterError as error:
                logger.warning("no key for node %s: %s", node, error)
            else:
                admitted[node] = bytes.fromhex(public)
        if request.roster and not admitted:
            raise RosterError(
                "expected a client of the pinned roster to share the key with, got none"
            )
        return admitted

    def accept(self, request: KeyRequest, envelope: bytes) -> None:
        """Open an envelope of the sender that the server names, and keep the key in it."""
        if request.sender is None:
            raise ProtocolError("expected the sender of the envelope, got none")
        store, sender = self._store, bytes.fromhex(request.sender)
        store.check_roster([sender])
        secret = unseal(envelope, store.identity, sender, store.run, request.key_index)
        key = FederationKey.from_bytes(secret)
        # A key that is kept stays for the run, so one of a liar would shut this client out.
        if request.fingerprint not in {"", key.fingerprint}:
            raise ProtocolError(
                f"expected the key {request.fingerprint} in the envelope, got {key.fingerprint}; "
                "whoever sealed it deviates from the protocol: another client hands out the key"
            )
        store.keep(key, [sender], request.key_index)
