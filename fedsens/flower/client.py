"""What the mod and the query handlers of a client share: opening, protecting, refusing."""

from __future__ import annotations

import logging
import time

import numpy as np
from flwr.app import Context, Error, Message, RecordDict

from fedsens.crypto import SecretKey
from fedsens.errors import (
    DowngradeError,
    FedSensError,
    LayoutError,
    MaskError,
    ProtocolError,
    RoundError,
    ValueRangeError,
)
from fedsens.files import Arrays, digest_of
from fedsens.flower.records import (
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
from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask, mask_count, not_finite, tied_but_masked_apart
from fedsens.protocol.headers import ModelHeader, UpdateHeader
from fedsens.protocol.keystore import KeyStore
from fedsens.protocol.opened import check_opened
from fedsens.protocol.settings import ClientSettings
from fedsens.protocol.tagged import check_values, encrypt_tagged
from fedsens.protocol.tags import Scope

logger = logging.getLogger(__name__)

REFUSED = 6  # Flower's ErrorCode.MOD_FAILED_PRECONDITION
RAISED = 2  # Flower's ErrorCode.CLIENT_APP_RAISED_EXCEPTION


class Client:
    """One client while it handles one message."""

    def __init__(self, context: Context, min_ratio: float = 0.0) -> None:
        """Read the client's own settings.

        Args:
            context: Flower's context.
            min_ratio: the app's minimum share of encrypted parameters; the larger of it and the
                data owner's setting holds.
        """
        self.settings = ClientSettings.from_node(context.node_config)
        self.store = KeyStore(self.settings, context.run_id, context.node_id)
        self.min_ratio = max(min_ratio, self.settings.min_ratio)
        self._before: Arrays | None = None  # the model that an update starts from
        self.decrypt_seconds = 0.0

    def open(self, content: RecordDict) -> Received:
        """Replace the split model in a message by the whole one.

        Args:
            content: the message's content; fedsens's records are removed from it.

        Returns:
            What the server said about the model.

        Raises:
            DowngradeError: the message has no fedsens header, or another key is wanted.
            RoundError: the model is older than the last one this client opened.

        An aggregate of too few clients, or one that is not what the server says, is a
        ContributorsError; a model that honest clients could not have made is a ModelError.
        """
        if not any(key.startswith(PREFIX) for key in content):
            raise DowngradeError(
                "expected a message protected by fedsens, got a plain one; wrap the server's "
                "strategy in SelectiveEncryption"
            )
        model, received = take_model(content)
        if received.header.round < self.store.last_round():
            raise RoundError(
                f"expected round {self.store.last_round()} or later, got {received.header.round}"
            )
        key = self.key_for(received.header)
        if received.header.model_round < self.store.last_model_round():
            raise RoundError(
                f"expected the result of round {self.store.last_model_round()} or later, got that "
                f"of round {received.header.model_round}"
            )
        self._check_key(received, model.ciphertext is not None, key)
        if model.ciphertext is None and received.header.model_round and self.store.holds_key:
            raise DowngradeError(
                f"expected the result of round {received.header.model_round} encrypted, because "
                "this client holds a key and only an initial model is plain, got it in plaintext; "
                "remove the key to take part in an unencrypted run"
            )
        started = time.process_time()
        arrays = model.open(key, self.settings.min_contributors, self.store.members)
        if model.ciphertext is not None or received.mask.k:
            check_opened(arrays, self.settings.max_norm)
        self.decrypt_seconds = time.process_time() - started
        if model.ciphertext is not None:
            content[received.key] = to_record(arrays)
            self.store.record_model(received.header, digest_of(arrays))
        return received

    def key_for(self, header: ModelHeader) -> SecretKey | None:
        """The key that a message is about.

        Args:
            header: the message's header.

        Returns:
            The key, None if this client has none of this generation.

        Raises:
            DowngradeError: the key was rotated out.
        """
        if header.generation < self.store.last_generation():
            raise DowngradeError(
                f"expected key {self.store.last_generation() + 1} of this run or a later one, "
                f"because the earlier ones were rotated out, got key {header.generation + 1}"
            )
        return self.store.key_of(header.generation)

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

    def begin(self, message: Message, received: Received) -> None:
        """Check what becomes of the remainder, and remember the model that an update starts from.

        Args:
            message: the opened message.
            received: what came with it.
        """
        policy = received.header.remainder.policy()
        policy.check(received.mask, self.settings.remainder, self.settings.min_noise)
        if policy.needs_received and message.metadata.message_type == "train":
            self._before = to_arrays(message.content.array_records[received.key])

    def _check_key(self, received: Received, encrypted: bool, key: SecretKey | None) -> None:
        header = received.header
        if received.mask.k == 0 and not encrypted:
            return
        if key is None:
            raise ProtocolError(
                "expected a secret key on this client, got none; take part in key agreement or "
                "set fedsens-key-file"
            )
        if header.fingerprint != key.fingerprint:
            raise ProtocolError(
                f"expected the key {key.fingerprint} of this client, got {header.fingerprint}; "
                "give every client the same key"
            )

    def protect(self, reply: Message, received: Received) -> None:
        """Encrypt the masked coordinates of an answer, so that none leaves in plaintext.

        Args:
            reply: the answer of the user's function; changed in place.
            received: the model it answers to.

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
        key = model_key(content)
        layout = received.layout
        arrays = to_arrays(content.array_records[key])
        _check_update(arrays, layout)
        if pairs := tied_but_masked_apart(arrays, layout, received.mask):
            raise MaskError(
                f"expected tied parameters to be masked alike, got {pairs}; force both names "
                "(fedsens.force), or send one of them only"
            )
        weight = examples_of(content, header.weighted_by) / header.reference
        leaving = header.remainder.policy().protect(
            self._before, arrays, received.mask, layout, header.round, self.store.folder
        )
        started = time.process_time()
        ciphertext = self._encrypt(leaving.masked, weight, received)
        seconds = time.process_time() - started
        content[CIPHERTEXT] = bytes_to_record(ciphertext)
        if leaving.plain is None:
            del content[key]
        else:
            content[key] = to_record(leaving.plain)
        leaving.commit()
        logger.info(
            "round %d train: %d of %d parameters encrypted, %d B; decrypt %.3f s, encrypt %.3f s",
            header.round,
            received.mask.k,
            layout.size,
            len(ciphertext),
            self.decrypt_seconds,
            seconds,
        )
        put_header(
            content,
            UpdateHeader(
                round=header.round,
                mask=received.mask.digest,
                layout=layout.digest,
                fingerprint=header.fingerprint,
                weight=weight,
                contributor=self.store.contributor,
                encrypt_seconds=seconds,
                decrypt_seconds=self.decrypt_seconds,
            ),
        )

    def _encrypt(self, values: np.ndarray, weight: float, received: Received) -> bytes:
        key = self.key_for(received.header)
        if key is None:  # _check_key has refused this already
            raise ProtocolError("expected a secret key on this client, got none")

        def name_of(index: int) -> str:
            return received.layout.name_of(int(np.flatnonzero(received.mask.selected)[index]))

        header = received.header
        check_values(values, header.parameters, name_of)
        return encrypt_tagged(
            values,
            weight,
            key.using(header.parameters),
            self.scope("update", received, header.reference, header.mask),
            self.store.contributor,
            self.settings.processes,
            name_of,
        )

    def scope(self, kind: str, received: Received, reference: float, mask: str = "") -> Scope:
        """What this client's tags are bound to in a round.

        Args:
            kind: what is encrypted.
            received: the model that is answered.
            reference: N_ref of the weights.
            mask: digest of the mask that selects the values.

        Returns:
            The scope.
        """
        return Scope(
            kind, self.store.run, received.header.round, mask, received.layout.digest, reference
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


def refuse(message: Message, error: FedSensError) -> Message:
    """Answer a message with a named error and nothing else.

    Args:
        message: the message.
        error: why it is refused.

    Returns:
        The error reply.
    """
    logger.error("refused %s: %s: %s", message.metadata.message_type, type(error).__name__, error)
    return Message(Error(REFUSED, f"{type(error).__name__}: {error}"), reply_to=message)


def conceal(message: Message, error: Exception) -> Message:
    """Answer a message with the type of an unexpected exception, whose text could quote anything.

    Args:
        message: the message.
        error: the exception; log it on the client, where its text belongs.

    Returns:
        The error reply.
    """
    reason = f"{type(error).__name__} in the app; the client's own log has the details"
    return Message(Error(RAISED, reason), reply_to=message)
