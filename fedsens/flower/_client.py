"""One client while it handles one message: the only part of this package that touches keys."""

from __future__ import annotations

import logging
import math
import secrets
import time
from functools import cached_property

import numpy as np
from flwr.app import Context, Message, RecordDict
from numpy.typing import NDArray

from fedsens.config import modules_in
from fedsens.crypto import NameOf, check_range
from fedsens.errors import (
    DowngradeError,
    EnvelopeError,
    LayoutError,
    MaskError,
    ModelError,
    ProtocolError,
    RosterError,
    RoundError,
    ValueRangeError,
)
from fedsens.extensions import load_extensions
from fedsens.files import Arrays, digest_of
from fedsens.flower._records import (
    CIPHERTEXT,
    PREFIX,
    Received,
    bytes_to_record,
    examples_of,
    model_key,
    put_header,
    take_model,
    to_arrays,
    to_record,
)
from fedsens.keys import (
    ClientSettings,
    FederationKey,
    KeyStore,
    PendingUpload,
    UploadRecords,
    key_answer,
    make_tags,
    open_aggregate,
    open_model,
    rekey,
    roster_fingerprint,
    seal,
    unseal,
)
from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask, mask_count, not_finite, tied_but_masked_apart
from fedsens.protocol import (
    Aggregate,
    Contributor,
    KeyReply,
    KeyRequest,
    KeySumRequest,
    ModelHeader,
    Party,
    ProtectedModel,
    RekeyRequest,
    RoundContext,
    UploadHeader,
    check_weight,
)

logger = logging.getLogger(__name__)

SMALL = 100  # times the error of a mean: a tensor of lower values is worth a word


class Client:
    """What the mod and the query handlers share: opening, encrypting, answering for keys."""

    def __init__(self, context: Context, min_ratio: float = 0.0) -> None:
        """Read the client's own settings.

        Args:
            context: Flower's context.
            min_ratio: the app's minimum share of encrypted parameters; the larger of it and the
                data owner's setting holds.
        """
        if modules := modules_in(context.run_config.get(f"{PREFIX}import", "")):
            load_extensions(modules)
        self.settings = ClientSettings.from_node(context.node_config)
        self.store = KeyStore(self.settings, context.run_id, context.node_id)
        self.min_ratio = max(min_ratio, self.settings.min_ratio)
        self.decrypt_seconds = 0.0

    @cached_property
    def uploads(self) -> UploadRecords:
        """What this client has uploaded, and for which lists it gave its keys."""
        return UploadRecords(self.store.folder)

    # Models.

    def open(self, content: RecordDict) -> Received:
        """Replace the split model in a message by the whole one.

        Args:
            content: the message's content; fedsens's records are removed from it.

        Returns:
            What the server said about the model.
        """
        model, received = self.receive(content)
        encrypted, header = model.aggregate is not None, received.header
        arrays = self._open_model(model, received)
        del model  # a large one is held as few times as can be
        if encrypted:
            content[received.key] = to_record(arrays)
            _ = self.store.folder  # made here, if the key came from elsewhere
            self.store.record.record_model(
                header.round, header.model_round, header.key_index, digest_of(arrays)
            )
        return received

    def receive(self, content: RecordDict) -> tuple[ProtectedModel, Received]:
        """Take the split model out of a message.

        Args:
            content: the message's content; fedsens's records are removed from it.

        Returns:
            The model, still encrypted, and what the server said about it.

        Raises:
            DowngradeError: the message has no fedsens header, or is about a key of earlier rounds.
            RoundError: the model is older than the last one this client opened.
        """
        if not any(key.startswith(PREFIX) for key in content):
            raise DowngradeError(
                "expected a message protected by fedsens, got a plain one; wrap the server's "
                "strategy in SelectiveEncryption"
            )
        model, received = take_model(content)
        header = received.header
        last = self.store.record.last_key_index()
        if header.key_index < last:
            raise DowngradeError(
                f"expected key {last + 1} of this run or a later one, "
                f"because the earlier ones were rotated out, got key {header.key_index + 1}"
            )
        for what, got, last in (
            ("round", header.round, self.store.record.last_round()),
            ("the result of round", header.model_round, self.store.record.last_model_round()),
        ):
            if got < last:
                raise RoundError(
                    f"expected {what} {last} or later, got {got}; a Flower run has one start of "
                    "SelectiveEncryption, so begin another run for a second one, or resume"
                )
        if model.aggregate is None and header.model_round and self.store.holds_key:
            raise DowngradeError(
                f"expected the result of round {header.model_round} encrypted, because this client "
                "holds a key and only an initial model is plain, got it in plaintext; remove the "
                "key to take part in an unencrypted run"
            )
        return model, received

    def _open_model(self, model: ProtectedModel, received: Received) -> Arrays:
        started = time.process_time()
        encrypted = model.aggregate is not None or received.mask.k
        key = self._key_for(received.header) if encrypted else None
        arrays = open_model(model, key, self.settings.min_contributors, self.store.members)
        if encrypted:
            check_global_model(arrays, self.settings.max_norm)
        self.decrypt_seconds = time.process_time() - started
        return arrays

    def _key_for(self, header: ModelHeader) -> FederationKey:
        key = self.store.key_of(header.key_index)
        if key is None:
            raise ProtocolError(
                "expected a key on this client, got none; take part in key agreement or set "
                "fedsens-key-file"
            )
        if header.fingerprint != key.fingerprint:
            raise ProtocolError(
                f"expected the key {key.fingerprint} of this client, got {header.fingerprint}; "
                "give every client the same key"
            )
        return key

    def check_mask(self, mask: EncryptionMask) -> None:
        """Refuse a mask that protects less than this client demands.

        Args:
            mask: the mask that the server wants the answer split by.

        Raises:
            DowngradeError: the mask is below the minimum ratio, or empty although the client
                holds a key.
        """
        least = mask_count(self.min_ratio, mask.size)
        if mask.k < least:
            raise DowngradeError(
                f"expected at least {least} of {mask.size} parameters encrypted (minimum ratio "
                f"{self.min_ratio}), got {mask.k}; raise the server's ratio"
            )
        if mask.k == 0 and mask.size and self.store.holds_key:
            raise DowngradeError(
                "expected encryption, because this client holds a key, got an empty mask; "
                "remove the key to take part in an unencrypted run"
            )

    def open_map(self, aggregate: Aggregate, received: Received) -> NDArray[np.floating]:
        """The weighted mean of the clients' maps.

        Args:
            aggregate: the sum.
            received: the model that came with it.

        Returns:
            P scores; exact zeros where nothing is above the noise, so that ties go by index.

        Raises:
            ProtocolError: it is no sum of maps of this run, round and model.
        """
        context, layout = aggregate.header.context, received.layout
        told = (context.kind, context.run, context.round, context.layout)
        if told != ("map", self.store.run, received.header.round, layout.digest):
            raise ProtocolError(
                "expected a sum of maps of this run, round and model, got another; the server "
                "deviates from the protocol"
            )
        key = self._key_for(received.header)
        least, roster = self.settings.min_contributors, self.store.members
        scores = open_aggregate(aggregate, key, layout.size, least, roster)
        clients = len(aggregate.header.contributors.members)
        scores[scores < context.parameters.error_bound(clients) / aggregate.header.weight] = 0.0
        return scores

    def rekey(self, model: ProtectedModel, received: Received, request: RekeyRequest) -> Aggregate:
        """The aggregate of a model with tags and pads under a later key.

        Args:
            model: the model under the earlier key.
            received: what came with it.
            request: which key is wanted.

        Returns:
            The aggregate under the later key.

        Raises:
            ProtocolError: the later key is not held, or is no later one than the model's.
        """
        header, aggregate = received.header, model.aggregate
        if aggregate is None:
            raise ProtocolError("expected an encrypted model to put under a new key, got none")
        if request.key_index <= header.key_index:
            raise ProtocolError(
                f"expected a later key than key {header.key_index + 1}, got key "
                f"{request.key_index + 1}; a rotation goes forward only"
            )
        key = self.store.key_of(request.key_index)
        if key is None or key.fingerprint != request.fingerprint:
            raise ProtocolError(
                f"expected the key {request.fingerprint} as key {request.key_index + 1} of this "
                f"run, got {key.fingerprint if key else 'none'}; give every client the same keys"
            )
        self._open_model(model, received)
        return rekey(aggregate, self._key_for(header), key)

    # Uploads.

    def begin_upload(self, kind: str, received: Received) -> RoundContext:
        """Note, before any work is done, that this client answers this question and no other.

        Args:
            kind: of the upload.
            received: what the server said.

        Returns:
            What the upload is bound to.

        Raises:
            ProtocolError: this client is not in the cohort by its own identities.
        """
        header = received.header
        mine = self._party
        if mine not in header.cohort or len({each.name for each in header.cohort}) != len(
            header.cohort
        ):
            raise ProtocolError(
                f"expected a cohort of different clients with this one ({mine.name[:16]}) and the "
                "identity that it made for this run, got another; the server must say hello again"
            )
        context = header.context(
            "map" if kind == "map" else "update", self.store.run, received.base
        )
        self.uploads.begin(kind, header.round, context.digest)
        return context

    @property
    def _party(self) -> Party:
        return Party(name=self.store.name, run_key=self.store.run_public_key.hex())

    def encrypt(
        self,
        context: RoundContext,
        header: ModelHeader,
        values: NDArray[np.floating],
        weight: float,
        name_of: NameOf,
    ) -> tuple[UploadHeader, bytes]:
        """Encrypt an upload under a fresh secret, which stays in this client's folder.

        Args:
            context: what it is bound to.
            header: of the message that it answers.
            values: 1-D, before they are weighted.
            weight: their factor.
            name_of: names the parameter at an index, for errors.

        Returns:
            The upload's header and the ciphertext.
        """
        from fedsens.crypto import Encryptor  # which loads SEAL; a key answer does without

        check_weight(weight)
        check_range(values, context.parameters, name_of)
        started = time.process_time()
        encryptor = Encryptor(context.parameters, context.digest, self.settings.processes)
        ciphertext, secret = encryptor.encrypt(values, name_of, weight)
        nonce = secrets.token_hex(16)
        member = Contributor(name=self.store.name, weight=weight, nonce=nonce)
        key = self._key_for(header)
        tags = make_tags(ciphertext, context.parameters, key, context.digest, member)
        pending = PendingUpload(
            secret=secret.to_array(),
            weight=weight,
            nonce=bytes.fromhex(nonce),
            context=context.digest,
            cohort=tuple((each.name, each.run_key) for each in header.cohort),
            key_index=header.key_index,
        )
        self.uploads.keep(context.kind, context.round, pending)
        told = UploadHeader(
            context=context.digest.hex(),
            name=self.store.name,
            weight=weight,
            nonce=nonce,
            tags=tags,
            encrypt_seconds=time.process_time() - started,
            decrypt_seconds=self.decrypt_seconds,
        )
        return told, ciphertext

    def answer_key_sum(self, request: KeySumRequest) -> bytes:
        """This client's padded secret for a list, which it gives for one list only.

        Args:
            request: the list, and of which uploads.

        Returns:
            2 N bytes. The same list again gets the same answer.
        """
        contributors = request.contributors
        contributors.check(self.settings.min_contributors, self.store.members)
        context = bytes.fromhex(request.context)
        digest = contributors.digest(context)

        def compute(pending: PendingUpload) -> bytes:
            mine = Contributor(
                name=self.store.name, weight=pending.weight, nonce=pending.nonce.hex()
            )
            parties = dict(pending.cohort)
            known = set(contributors.names) <= set(parties)
            if pending.context != context or mine not in contributors.members or not known:
                raise ProtocolError(
                    "expected a list within the context of this client's upload, of clients that "
                    "were asked, with its own weight and nonce, got another; the server deviates "
                    "from the protocol"
                )
            others = [
                Party(name=name, run_key=parties[name])
                for name in contributors.names
                if name != self.store.name
            ]
            identities = self.store.identity, self.store.run_identity
            key = self.store.key_of(pending.key_index)
            if key is None:
                raise ProtocolError("expected the key of this upload on this client, got none")
            return key_answer(pending.secret, identities, others, key, digest)

        return self.uploads.answer(request.kind, request.round, digest, compute)

    def protect(
        self,
        reply: Message,
        received: Received,
        context: RoundContext | None,
        before: Arrays | None,
    ) -> None:
        """Encrypt the masked coordinates of an answer, so that none leaves in plaintext.

        Args:
            reply: the answer of the user's function; changed in place.
            received: the model it answers to.
            context: what the upload is bound to; None where none was begun.
            before: the model that training began with, where the remainder's policy needs it.

        Raises:
            MaskError: the mask would send a tied parameter in plaintext under its other name.
            ProtocolError: the answer holds a record that would leave unprotected.
        """
        content, header = reply.content, received.header
        if not content.array_records:
            return
        self.check_mask(received.mask)
        if not received.mask.k:
            return  # an unencrypted run is the inner strategy's alone
        if strange := [name for name in content if name.startswith(PREFIX)]:
            raise ProtocolError(
                f"expected an answer without records of fedsens's names, got {strange}; they would "
                "leave unprotected: name them otherwise"
            )
        if context is None:
            raise ProtocolError(
                "expected a model in answers to training only, got one in another answer; send "
                "metrics"
            )
        key = model_key(content)
        layout, mask = received.layout, received.mask
        # A large model is held as few times as can be: the record goes as soon as it was read.
        arrays = to_arrays(content.array_records[key])
        del content[key]
        _check_update(arrays, layout)
        if pairs := tied_but_masked_apart(arrays, layout, mask):
            raise MaskError(
                f"expected tied parameters to be masked alike, got {pairs}; force both names "
                "(fedsens.force), or send one of them only"
            )
        weight = examples_of(content, header.weighted_by) / header.reference
        policy = header.remainder.policy()
        leaving = policy.protect(before, arrays, mask, layout, header.round, self.store.folder)
        if not header.model_round:
            self._warn_of_small(arrays, received)
        del arrays
        told, ciphertext = self.encrypt(
            context,
            header,
            leaving.masked,
            weight,
            lambda index: layout.name_of(int(np.flatnonzero(mask.selected)[index])),
        )
        content[CIPHERTEXT] = bytes_to_record(ciphertext)
        if leaving.plain is not None:
            content[key] = to_record(leaving.plain)
        leaving.commit()
        put_header(content, told)
        logger.info(
            "round %d train: %d of %d parameters encrypted, %d B; decrypt %.3f s, encrypt %.3f s",
            header.round,
            mask.k,
            layout.size,
            len(ciphertext),
            told.decrypt_seconds,
            told.encrypt_seconds,
        )

    def _warn_of_small(self, arrays: Arrays, received: Received) -> None:
        """Name tensors that the codec's error could change noticeably."""
        error = received.header.parameters.error_rms(len(received.header.cohort))
        small = []
        for entry in received.layout.entries:
            chosen = arrays[entry.name][received.mask.of(entry)].astype(np.float64)
            rms = math.sqrt(float(chosen @ chosen) / chosen.size) if chosen.size else math.inf
            if 0 < rms < SMALL * error:
                small.append(entry.name)
        if small:
            logger.warning(
                "the error of the encryption, %.1g, is more than a hundredth of the values of %s; "
                "use fedsens.preset exact, or a smaller fedsens.value-range",
                error,
                ", ".join(small),
            )

    # Keys.

    def introduce(self, request: KeyRequest, examples: int) -> KeyReply:
        """Who this client is, and which key it holds.

        Args:
            request: what the server asked.
            examples: number of training examples.

        Returns:
            The answer.
        """
        store, held = self.store, self.store.key_of(request.key_index)
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

    def adopt_key(self, request: KeyRequest) -> None:
        """Take over the key of an earlier run, for a run that continues it."""
        self.store.adopt(request.fingerprint, request.key_index)

    def share_key(self, request: KeyRequest) -> dict[str, bytes]:
        """Seal the key to clients that may have it; it is made where that is wanted.

        Args:
            request: to whom.

        Returns:
            Node to envelope.

        Raises:
            ProtocolError: this client has no key to share.
        """
        store = self.store
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
                self.store.check_roster([bytes.fromhex(public)])
            except RosterError as error:
                logger.warning("no key for node %s: %s", node, error)
            else:
                admitted[node] = bytes.fromhex(public)
        if request.roster and not admitted:
            raise RosterError(
                "expected a client of the pinned roster to share the key with, got none"
            )
        return admitted

    def accept_key(self, request: KeyRequest, envelope: bytes) -> None:
        """Open an envelope and keep the key in it.

        Args:
            request: who sealed it, and which key it is.
            envelope: the envelope.

        Raises:
            ProtocolError: the server names no sender.
        """
        if request.sender is None:
            raise ProtocolError("expected the sender of the envelope, got none")
        store, sender = self.store, bytes.fromhex(request.sender)
        store.check_roster([sender])
        secret = unseal(envelope, store.identity, sender, store.run, request.key_index)
        store.keep(FederationKey.from_bytes(secret), [sender], request.key_index)


def check_global_model(arrays: Arrays, max_norm: float = 0.0) -> None:
    """Refuse a model with values that are no numbers, or one beyond a norm.

    The norm is the model's own and not that of its change: a client that is sampled now and then
    meets models that many honest rounds have moved since it last opened one, so no bound on the
    change is sound, and it would have to keep a plaintext model on its disk to compare with.

    Args:
        arrays: name to array.
        max_norm: the largest L2 norm over all floating-point values; 0 for no bound.

    Raises:
        ModelError: names what is not finite, or says that the norm is beyond the bound.
    """
    if broken := not_finite(arrays):
        raise ModelError(
            f"expected a global model of finite values, got NaN or infinity in {', '.join(broken)};"
            " do not go on with this model"
        )
    if not max_norm:
        return
    floats = (a.astype(np.float64).reshape(-1) for a in arrays.values() if a.dtype.kind == "f")
    with np.errstate(over="ignore"):
        norm = math.sqrt(sum(float(flat @ flat) for flat in floats))
    if not norm <= max_norm:
        raise ModelError(
            f"expected a global model of L2 norm at most {max_norm:g} (fedsens-max-norm), got one "
            "beyond; do not go on with this model, or raise the bound on this client"
        )


def _check_update(arrays: Arrays, layout: ParameterLayout) -> None:
    try:
        layout.check(arrays)
    except LayoutError as error:
        raise LayoutError(f"the trained model differs from the one received: {error}") from None
    if broken := not_finite(arrays):
        raise ValueRangeError(
            f"expected finite parameters after training, got NaN or infinity in "
            f"{', '.join(broken)}; lower the learning rate"
        )
