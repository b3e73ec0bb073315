"""A client's half of uploads: each is encrypted under a secret that is given for one list only."""

from __future__ import annotations

import logging
import math
import secrets
import time
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Message, RecordDict
from numpy.typing import NDArray

from fedsens._files import Arrays
from fedsens.crypto import NameOf, check_range
from fedsens.errors import (
    ContributorsError,
    DowngradeError,
    LayoutError,
    MaskError,
    ProtocolError,
    ValueRangeError,
)
from fedsens.flower._metrics import keep_count_only
from fedsens.flower._records import (
    CIPHERTEXT,
    PREFIX,
    Received,
    bytes_to_record,
    examples_of,
    model_key,
    put_header,
    to_arrays,
    to_record,
)
from fedsens.keys import PendingUpload, key_answer, make_tags
from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask, not_finite, tied_but_masked_apart
from fedsens.protocol import (
    Contributor,
    Contributors,
    KeySumRequest,
    Kind,
    ModelHeader,
    Party,
    RoundContext,
    UploadHeader,
    check_weight,
)
from fedsens.remainder import DELTA, Account, CentralPrivacy

if TYPE_CHECKING:
    from fedsens.flower._client import Client

logger = logging.getLogger(__name__)

SMALL = 100  # times the error of a mean: a tensor of lower values is worth a word


class Uploader:
    """Makes this client's uploads, one for each kind and round, and gives their keys."""

    def __init__(self, client: Client) -> None:
        """Upload for a client."""
        self._client = client

    def begin(self, kind: Kind, received: Received) -> RoundContext:
        """Note, before any work is done, that this client answers this question and no other."""
        header = received.header
        mine = self._party
        if mine not in header.cohort or len({each.name for each in header.cohort}) != len(
            header.cohort
        ):
            raise ProtocolError(
                f"expected a cohort of different clients with this one ({mine.name[:16]}) and the "
                "identity that it made for this run, got another; the server must say hello again"
            )
        context = header.context(kind, self._client.store.run, received.base)
        self._client.records.begin(kind, header.round, context.digest)
        return context

    @property
    def _party(self) -> Party:
        return Party(name=self._client.store.name, run_key=self._client.store.run_public_key.hex())

    def encrypt(
        self,
        context: RoundContext,
        header: ModelHeader,
        values: NDArray[np.floating],
        weight: float,
        name_of: NameOf,
    ) -> tuple[UploadHeader, bytes]:
        """Encrypt an upload under a fresh secret, which stays in this client's folder."""
        from fedsens.crypto import Encryptor  # which loads SEAL; a key answer does without

        check_weight(weight)
        check_range(values, context.parameters, name_of)
        started = time.process_time()
        encryptor = Encryptor(context.parameters, context.digest, self._client.settings.processes)
        ciphertext, secret = encryptor.encrypt(values, name_of, weight)
        nonce = secrets.token_hex(16)
        member = Contributor(name=self._client.store.name, weight=weight, nonce=nonce)
        tags: tuple[int, ...] = ()
        if context.opens == "clients":
            key = self._client.key_for(header)
            tags = make_tags(ciphertext, context.parameters, key, context.digest, member)
        pending = PendingUpload(
            secret=secret.to_array(),
            weight=weight,
            nonce=bytes.fromhex(nonce),
            context=context.digest,
            cohort=tuple((each.name, each.run_key) for each in header.cohort),
            key_index=header.key_index,
            opens=context.opens,
            dp=context.dp if context.kind == "update" else None,  # metrics have no noise
        )
        self._client.records.keep(context.kind, context.round, pending)
        told = UploadHeader(
            context=context.digest.hex(),
            name=self._client.store.name,
            weight=weight,
            nonce=nonce,
            tags=tags,
            encrypt_seconds=time.process_time() - started,
            decrypt_seconds=self._client.decrypt_seconds,
        )
        return told, ciphertext

    def answer_key_sum(self, request: KeySumRequest) -> bytes:
        """The padded secret, 2 N bytes, for one list only; for the same list again the same."""
        contributors = request.contributors
        contributors.check(self._client.settings.min_contributors, self._client.store.members)
        context = bytes.fromhex(request.context)
        digest = contributors.digest(context)

        def compute(pending: PendingUpload) -> bytes:
            mine = Contributor(
                name=self._client.store.name, weight=pending.weight, nonce=pending.nonce.hex()
            )
            # The list must hold this very upload, and nobody but whom the server named before it: a
            # stranger's pad could be one that the server knows, and would not cover the secret.
            parties = dict(pending.cohort)
            known = set(contributors.names) <= set(parties)
            if pending.context != context or mine not in contributors.members or not known:
                raise ProtocolError(
                    "expected a list within the context of this client's upload, of clients that "
                    "were asked, with its own weight and nonce, got another; the server deviates "
                    "from the protocol"
                )
            if pending.dp is not None:
                self._spend(pending.dp, contributors)
            others = [
                Party(name=name, run_key=parties[name])
                for name in contributors.names
                if name != self._client.store.name
            ]
            identities = self._client.store.identity, self._client.store.run_identity
            if pending.opens == "server":  # which this client's owner allowed when it uploaded
                return key_answer(pending.secret, identities, others, None, digest)
            key = self._client.store.key_of(pending.key_index)
            if key is None:
                raise ProtocolError("expected the key of this upload on this client, got none")
            return key_answer(pending.secret, identities, others, key, digest)

        return self._client.records.answer(request.kind, request.round, digest, compute)

    def check_private(self, received: Received) -> None:
        """Refuse, before training, what noise does not cover or what the budget does not."""
        terms = received.header.dp
        if terms is None:
            return
        mask, budget = received.mask, self._client.settings.max_epsilon
        if mask.k < mask.size:
            raise DowngradeError(
                "expected every parameter to be encrypted, because noise is added to the mean "
                f"(fedsens.dp-noise), got a mask of {mask.k} of {mask.size}; set fedsens.ratio to 1"
            )
        self._account.check(terms.cost_to_client(terms.shares), budget)

    def _spend(self, terms: CentralPrivacy, contributors: Contributors) -> None:
        """Account for a sum that is about to be opened; refuse one with less noise than said."""
        roster, settings = self._client.store.members, self._client.settings
        contributors.check(terms.shares, roster)
        _check_equal_weights(contributors)
        names = contributors.names if roster is None else roster & set(contributors.names)
        cost = terms.cost_to_client(len(names))
        spent = self._account.spend(cost, settings.max_epsilon)
        logger.info(
            "central noise: at most epsilon %.4g for this mean, and %.4g for %d answers so far "
            "from this state folder (delta %g)",
            cost.epsilon(),
            spent.epsilon(),
            spent.answers,
            DELTA,
        )

    @property
    def _account(self) -> Account:
        return Account.of_client(self._client.store.folder)

    def protect(
        self,
        reply: Message,
        received: Received,
        context: RoundContext | None,
        before: Arrays | None,
    ) -> None:
        """Encrypt the masked coordinates of an answer, so that none leaves in plaintext.

        Where metrics are summed, nothing of them but the number of examples leaves, either. The
        model that training began with is given where the remainder's policy needs it. An answer
        that would send a tied parameter in plaintext under its other name, or a record unprotected,
        is refused.
        """
        content, header = reply.content, received.header
        if header.metrics == "summed":  # also where no model leaves
            keep_count_only(content, header.weighted_by)
        if not content.array_records:
            return
        self._client.check_mask(received.mask)
        if not received.mask.k:
            return  # an unencrypted run is the inner strategy's alone
        context = _own_upload(content, context)
        key = model_key(content)
        layout, mask = received.layout, received.mask
        # 1. Check what was trained. A large model is held as few times as can be: the record goes
        # as soon as it was read.
        arrays = to_arrays(content.array_records[key])
        del content[key]
        _check_update(arrays, layout, mask)
        weight = header.weight_of(examples_of(content, header.weighted_by))
        # 2. Divide it into what is encrypted and what leaves in plaintext, with noise where due.
        arrays = _private(arrays, before, received)
        policy = header.remainder.policy()
        folder = self._client.store.folder
        budget = self._client.settings.max_epsilon
        leaving = policy.protect(before, arrays, mask, layout, header.round, folder, budget)
        if not header.model_round:
            self._warn_of_small(arrays, received)
        del arrays
        # 3. Encrypt under a secret that is on the disk before anything leaves.
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
        leaving.commit()  # what stays here is noted only once nothing can fail any more
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
        small, zero = list[str](), list[str]()
        for entry in received.layout.entries:
            chosen = arrays[entry.name][received.mask.of(entry)].astype(np.float64)
            rms = math.sqrt(float(chosen @ chosen) / chosen.size) if chosen.size else math.inf
            if rms < SMALL * error:
                (small if rms else zero).append(entry.name)
        if small:
            logger.warning(
                "the error of the encryption, %.1g, is more than a hundredth of the values of %s; "
                "use fedsens.preset exact, or a smaller fedsens.value-range",
                error,
                ", ".join(small),
            )
        if zero:
            logger.warning(
                "%s are zeros after training and get the error of the encryption, %.1g, in their "
                "place; where they must stay zero, keep them out of the model that is sent",
                ", ".join(zero),
                error,
            )


def _check_equal_weights(contributors: Contributors) -> None:
    """Refuse a sum in which one client's noise would count for less than another's update."""
    if len({each.weight for each in contributors.members}) > 1:
        raise ContributorsError(
            "expected clients of equal weight, whose noise makes their mean private "
            "(fedsens.dp-noise), got others; the server deviates from the protocol"
        )


def _private(arrays: Arrays, before: Arrays | None, received: Received) -> Arrays:
    """The trained model with what central privacy asks for, as it is without."""
    terms = received.header.dp
    if terms is None:
        return arrays
    assert before is not None  # kept where there are terms
    return terms.protect(before, arrays)


def _own_upload(content: RecordDict, context: RoundContext | None) -> RoundContext:
    """The context of an answer that holds a model; refuses records that would leave unprotected."""
    if strange := [name for name in content if name.startswith(PREFIX)]:
        raise ProtocolError(
            f"expected an answer without records of fedsens's names, got {strange}; they would "
            "leave unprotected: name them otherwise"
        )
    if context is None:
        raise ProtocolError(
            "expected a model in answers to training only, got one in another answer; send metrics"
        )
    return context


def _check_update(arrays: Arrays, layout: ParameterLayout, mask: EncryptionMask) -> None:
    try:
        layout.check(arrays)
    except LayoutError as error:
        raise LayoutError(f"the trained model differs from the one received: {error}") from None
    if broken := not_finite(arrays):
        raise ValueRangeError(
            f"expected finite parameters after training, got NaN or infinity in "
            f"{', '.join(broken)}; lower the learning rate"
        )
    if pairs := tied_but_masked_apart(arrays, layout, mask):
        raise MaskError(
            f"expected tied parameters to be masked alike, got {pairs}; force both names "
            "(fedsens.force), or send one of them only"
        )
