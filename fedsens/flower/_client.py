"""One client while it handles one message, with its key and what it has stored."""

from __future__ import annotations

import logging
import math
import time
from functools import cached_property

import numpy as np
from flwr.app import Context, RecordDict
from numpy.typing import NDArray

from fedsens._extensions import load_extensions
from fedsens._files import Arrays, digest_of, sorted_digest
from fedsens.config import modules_in
from fedsens.crypto import Opens
from fedsens.errors import (
    DowngradeError,
    ModelError,
    ProtocolError,
    RoundError,
)
from fedsens.flower._client_keys import KeyHolder
from fedsens.flower._client_uploads import Uploader
from fedsens.flower._maps import drop_noise
from fedsens.flower._records import (
    PREFIX,
    Received,
    take_model,
    to_record,
)
from fedsens.keys import (
    ClientSettings,
    FederationKey,
    KeyStore,
    UploadRecords,
    certify_mask,
    open_aggregate,
    open_model,
    rekey,
)
from fedsens.mask import EncryptionMask, mask_count, not_finite
from fedsens.protocol import (
    Aggregate,
    ModelHeader,
    ProtectedModel,
    RekeyRequest,
)

logger = logging.getLogger(__name__)


class Client:
    """What the mod and the query handlers share: settings, keys, records, opening a model."""

    def __init__(self, context: Context, min_ratio: float = 0.0) -> None:
        """Read the owner's settings; of their minimum share and the app's, the larger holds."""
        if modules := modules_in(context.run_config.get(f"{PREFIX}import", "")):
            load_extensions(modules)
        self.settings = ClientSettings.from_node(context.node_config)
        self.store = KeyStore(self.settings, context.run_id, context.node_id)
        self.min_ratio = max(min_ratio, self.settings.min_ratio)
        self.decrypt_seconds = 0.0

    @cached_property
    def records(self) -> UploadRecords:
        """What this client has uploaded, and for which lists it gave its keys."""
        return UploadRecords(self.store.folder)

    @cached_property
    def keys(self) -> KeyHolder:
        """This client's half of key agreement."""
        return KeyHolder(self.store)

    @cached_property
    def uploads(self) -> Uploader:
        """This client's half of uploads."""
        return Uploader(self)

    def open(self, content: RecordDict) -> Received:
        """Replace the split model in a message by the whole one; what the server said about it."""
        model, received = self.receive(content)
        header, shown = received.header, received.header.opens == "server" and received.mask.k
        encrypted = model.aggregate is not None
        arrays = self._open_model(model, received)
        del model  # a large one is held as few times as can be
        if not encrypted and not header.model_round:
            self._check_initial(arrays, received)
        if encrypted:
            content[received.key] = to_record(arrays)
        if encrypted or shown:
            _ = self.store.folder  # made here, if the key came from elsewhere
            self.store.record.record_model(
                header.round, header.model_round, header.key_index, digest_of(arrays)
            )
        return received

    def _check_initial(self, arrays: Arrays, received: Received) -> None:
        """Refuse any initial model but one: what is computed from a model tells about the data.

        A server that sends models of its own making, one after the other, reads the data from what
        clients say to them (SECURITY.md), so a run has the one that came first, or the one that
        the owner pins.

        Raises:
            DowngradeError: it is another one.
        """
        pinned, digest = self.settings.initial_sha256, sorted_digest(arrays)
        protected = self.store.holds_key or received.header.opens == "server" or received.mask.k
        first = pinned
        if protected and not pinned:
            _ = self.store.folder  # made here, if the key came from elsewhere
            first = self.store.record.first_initial(digest)
        if first and digest != first:
            raise DowngradeError(
                f"expected the initial model {first} "
                f"{'of fedsens-initial-sha256' if pinned else 'that this run began with'}, got "
                f"{digest}; a run has one initial model"
            )

    def receive(self, content: RecordDict) -> tuple[ProtectedModel, Received]:
        """Take the split model, still encrypted, out of a message, with what was said about it.

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
        self.check_opens(header.opens)
        self._check_noise(header)
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
        shown = header.opens == "server" and received.mask.k > 0
        plain = model.aggregate is None and header.model_round
        if plain and self.store.holds_key and not shown:
            raise DowngradeError(
                f"expected the result of round {header.model_round} encrypted, because this client "
                "holds a key and only an initial model is plain, got it in plaintext; remove the "
                "key to take part in an unencrypted run"
            )
        return model, received

    def check_opens(self, opens: Opens) -> None:
        """Refuse a server that opens sums without this client's leave."""
        if opens == "server" and self.settings.opens != "server":
            raise DowngradeError(
                "expected sums that only clients open, got a server that wants to open them "
                "itself and would know the mean of all updates; set the server's fedsens.opens to "
                "clients, or allow it with fedsens-opens=server"
            )

    def _check_noise(self, header: ModelHeader) -> None:
        least, offered = self.settings.min_dp_noise, header.dp.noise if header.dp else 0.0
        if offered < least:
            raise DowngradeError(
                f"expected a mean with a noise multiplier of at least {least:g} "
                f"(fedsens-min-dp-noise), got {offered:g}; raise the server's fedsens.dp-noise"
            )

    def _open_model(self, model: ProtectedModel, received: Received) -> Arrays:
        started = time.process_time()
        encrypted = model.aggregate is not None or received.mask.k
        keyed = encrypted and received.header.opens == "clients"
        key = self.key_for(received.header) if keyed else None
        arrays = open_model(model, key, self.settings.min_contributors, self.store.members)
        if encrypted:
            check_global_model(arrays, self.settings.max_norm)
        self.decrypt_seconds = time.process_time() - started
        return arrays

    def key_for(self, header: ModelHeader) -> FederationKey:
        """The key that the server names, which this client must hold."""
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

        Raises:
            DowngradeError: the mask is below the minimum ratio, or empty although the client
                holds a key or was asked for encrypted answers before.
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
        if mask.k == 0 and mask.size and self.settings.demands_encryption:
            raise DowngradeError(
                "expected encryption, because this client pins a roster or limits what its answers "
                "tell (fedsens-roster-file, -min-dp-noise, -max-epsilon), got an empty mask; leave "
                "these settings out to take part in an unencrypted run"
            )
        if mask.k == 0 and mask.size and self.store.record.last_round():
            raise DowngradeError(
                "expected encryption, because this client's earlier answers in this run were "
                "encrypted, got an empty mask; the server deviates from the protocol"
            )

    def check_metrics(self, header: ModelHeader) -> None:
        """Refuse to send metrics in the clear where the owner demands sums."""
        if self.settings.metrics == "summed" != header.metrics:
            raise DowngradeError(
                "expected metrics that only the sum shows (fedsens-metrics=summed), got a server "
                "that wants this client's own; set the server's fedsens.metrics to summed"
            )

    def check_trained(self, received: Received) -> None:
        """Refuse to evaluate an initial model of a run that encrypts: Flower never asks for it."""
        if received.header.model_round == 0 and (received.mask.k or self.store.holds_key):
            raise DowngradeError(
                "expected a trained model to evaluate, got an initial one, whose loss would tell "
                "about this client's data; the server deviates from the protocol"
            )

    def open_map(self, aggregate: Aggregate, received: Received) -> NDArray[np.floating]:
        """The P scores of the aggregated map, with exact zeros where nothing is above the noise."""
        context, layout = aggregate.header.context, received.layout
        told = (context.kind, context.run, context.round, context.layout)
        if told != ("map", self.store.run, received.header.round, layout.digest):
            raise ProtocolError(
                "expected a sum of maps of this run, round and model, got another; the server "
                "deviates from the protocol"
            )
        key = self.key_for(received.header)
        least, roster = self.settings.min_contributors, self.store.members
        scores = open_aggregate(aggregate, key, layout.size, least, roster)
        members = aggregate.header.contributors.members
        drop_noise(scores, context.parameters, [each.weight for each in members])
        return scores

    def rekey(self, model: ProtectedModel, received: Received, request: RekeyRequest) -> Aggregate:
        """The aggregate of a model with tags and pads under a later key, which must be held."""
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
        return rekey(aggregate, self.key_for(header), key)

    def certify_again(self, received: Received, key_index: int) -> str:
        """The certificate under a later key of a mask that one of this client's keys certifies."""
        origin, digest = received.header.origin, received.mask.digest
        if origin is None or not origin.certificate:
            return ""
        old, new = self.store.key_of(origin.key_index), self.store.key_of(key_index)
        if old is None or new is None or certify_mask(old, origin, digest) != origin.certificate:
            raise DowngradeError(
                "expected a mask that a key holder vouches for, got another; the server deviates "
                "from the protocol"
            )
        return certify_mask(new, origin.model_copy(update={"key_index": key_index}), digest)


def check_global_model(arrays: Arrays, max_norm: float = 0.0) -> None:
    """Refuse a model with values that are no numbers, or one beyond an L2 norm; 0 is no bound.

    The norm is the model's own and not that of its change: a client that is sampled now and then
    meets models that many honest rounds have moved since it last opened one, so no bound on the
    change is sound, and it would have to keep a plaintext model on its disk to compare with.

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
