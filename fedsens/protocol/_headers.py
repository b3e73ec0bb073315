"""The headers of fedsens messages: frozen, versioned, checked on arrival.

A header travels as JSON text in a ConfigRecord. Masks, ciphertexts and padded keys travel beside
it as bytes.
"""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fedsens.crypto import MAP_PARAMETERS, CkksParameters, Opens
from fedsens.errors import ProtocolError
from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask, select_mask
from fedsens.protocol._aggregate import AggregateHeader, Tags
from fedsens.protocol._context import (
    Digest,
    Fingerprint,
    Kind,
    MaybeFingerprint,
    Printable,
    RoundContext,
)
from fedsens.protocol._contributors import (
    MOST_CONTRIBUTORS,
    Contributors,
    Nonce,
    Party,
    PublicKey,
    cohort_digest,
)
from fedsens.remainder import CentralPrivacy, RemainderTerms

Numbers = NDArray[np.floating]
PROTOCOL_VERSION = 3  # 3: one-time keys, exact tags
MOST_EXAMPLES = 2**53  # counts up to here are exact as floats
DEGREE = MAP_PARAMETERS.degree  # numbers in one ciphertext
#: What becomes of the metrics of evaluations.
MetricsForm = Literal["plain", "summed"]
MOST_PROBLEMS = 20  # problems beyond which they are not listed
WORD = re.compile("[A-Za-z0-9_-]{1,40}")
FIELD = 2**255 - 19  # of Curve25519
# The points of which anybody knows the result of an exchange: u of order 1, 2, 4 and 8.
LOW_ORDER = frozenset({
    0,
    1,
    FIELD - 1,
    0xB8495F16056286FDB1329CEB8D09DA6AC49FF1FAE35616AEB8413B7C7AEBE0,
    0x57119FD0DD4E22D8868E1C58C45C44045BEF839C55B1D0B1248C50A3BC959C5F,
})
KeyIndex = Annotated[int, Field(ge=0, le=2**20)]


class Header(BaseModel):
    """Base of all headers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[3] = 3

    def to_json(self) -> str:
        """The header as JSON text."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a header that another party sent.

        Args:
            text: JSON text.

        Returns:
            The header.

        Raises:
            ProtocolError: it is not a header of this kind and version.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ProtocolError(
                f"expected a {cls.__name__} of protocol version {PROTOCOL_VERSION}, got one with "
                f"wrong {_wrong_fields(error)}; use the same fedsens version on the server and all "
                "clients"
            ) from None


class MaskOrigin(BaseModel):
    """What a mask was made of, so that a client can make it again or knows who vouches for it.

    Attributes:
        run: in which a key holder made it, and with which a resumed run goes on.
        round: for which it was made.
        key_index: of the key that the certificate was made with.
        policy: registered mask policy.
        ratio: share to encrypt.
        force: forced layers.
        tied: pairs of tensors that are one parameter under two names.
        seed: seed of random policies.
        certificate: HMAC of a key holder over the mask and all of the above; empty where the
            server may choose the mask itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: Annotated[str, Field(pattern="^[0-9]{0,20}$")] = ""
    round: int = Field(ge=1)
    key_index: KeyIndex = 0
    policy: Printable
    ratio: float = Field(ge=0, le=1)
    force: tuple[Printable, ...] = ()
    tied: tuple[tuple[Printable, Printable], ...] = ()
    seed: int = Field(default=0, ge=0)
    certificate: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = ""

    @property
    def terms(self) -> str:
        """Digest of what stays the same in a run, whatever the round and the key."""
        told = self.model_dump_json(exclude={"run", "round", "key_index", "certificate"})
        return hashlib.sha256(b"fedsens mask terms" + told.encode()).hexdigest()

    def select(
        self, layout: ParameterLayout, scores: Numbers | None = None, weights: Numbers | None = None
    ) -> EncryptionMask:
        """What the policy chooses by the scores of the aggregated map, or the model's weights.

        Args:
            layout: the model's.
            scores: one for each parameter, in the order of the layout.
            weights: the parameters themselves, likewise.

        Returns:
            The mask.
        """
        return select_mask(
            scores,
            layout,
            self.policy,
            self.ratio,
            self.force,
            seed=self.seed,
            weights=weights,
            tied=self.tied,
        )


class ModelHeader(Header):
    """Travels with every model that the server sends.

    Attributes:
        round: the server round, from 1.
        model_round: the round whose result the model is; 0 for the initial model.
        layout: the model's layout as JSON.
        model_mask: digest of the mask that the model in this message is split by.
        mask: digest of the mask that the answer must be split by.
        origin: what that mask was made of; None while there is none.
        parameters: CKKS parameters of the masked part.
        fingerprint: of the agreed key; empty if nothing is encrypted.
        key_index: how often the key has been rotated.
        aggregate: what the encrypted part of the model was made of; None if there is none.
        cohort: the clients that are asked for an upload; empty where none is asked for.
        reference: N_ref of this round; the answer's weight is its examples / N_ref.
        weighted_by: name of the metric that counts examples.
        remainder: what becomes of the plaintext remainder of the answer.
        opens: who opens what is encrypted in the answers.
        dp: what clients do for central differential privacy.
        metrics: whether clients send the metrics of evaluations in the clear, or encrypted to a sum
            that the server opens.
    """

    round: int = Field(ge=1)
    model_round: int = Field(ge=0)
    layout: str
    model_mask: Digest
    mask: Digest
    origin: MaskOrigin | None = None
    parameters: CkksParameters
    fingerprint: MaybeFingerprint = ""
    key_index: KeyIndex = 0
    aggregate: AggregateHeader | None = None
    cohort: tuple[Party, ...] = Field(default=(), max_length=MOST_CONTRIBUTORS)
    reference: float = Field(gt=0, allow_inf_nan=False)
    weighted_by: Printable = "num-examples"
    remainder: RemainderTerms = RemainderTerms()
    opens: Opens = "clients"
    dp: CentralPrivacy | None = None
    metrics: MetricsForm = "plain"

    def weight_of(self, examples: float) -> float:
        """The factor of an update: its examples / N_ref, or the same for all for privacy's sake."""
        return 1 / len(self.cohort) if self.dp is not None else examples / self.reference

    def context(self, kind: Kind, run: str, base: str) -> RoundContext:
        """What uploads that answer a message with this header are bound to.

        Args:
            kind: of the upload.
            run: the Flower run.
            base: digest of the whole message.

        Returns:
            The context, the same for server and clients if they were told the same.
        """
        whole, metrics = kind != "update", kind == "metrics"  # sums of these are the server's
        return RoundContext(
            kind=kind,
            run=run,
            round=self.round,
            fingerprint=self.fingerprint,
            parameters=MAP_PARAMETERS if whole else self.parameters,
            layout=ParameterLayout.from_json(self.layout).digest,
            model_mask=self.model_mask,
            mask=None if whole else self.mask,
            base=base,
            reference=self.reference,
            weighted_by=self.weighted_by,
            remainder=self.remainder,
            opens="server" if metrics else self.opens,
            dp=None if metrics else self.dp,
            cohort=cohort_digest(self.cohort),
        )


class UploadHeader(Header):
    """Travels with every encrypted upload, be it a trained model or a map.

    Attributes:
        context: D, the digest of what the client was told.
        name: the client's identity.
        weight: examples / N_ref, the factor of the encrypted values.
        nonce: 16 random bytes of this upload.
        tags: of the ciphertext.
        samples: that a map averages over; 0 for an update.
        probed: whether random probes estimate the map.
        record: name of the record whose metrics are summed.
        metrics: names and lengths of the metrics that are summed; 0 for a number.
        work_seconds: CPU seconds to compute a map; 0 for an update.
        encrypt_seconds: CPU seconds to encrypt.
        decrypt_seconds: CPU seconds to decrypt the model that came with the message.
    """

    context: Digest
    name: PublicKey
    weight: float = Field(gt=0, allow_inf_nan=False)
    nonce: Nonce
    tags: Tags = Field(max_length=16)
    samples: int = Field(default=0, ge=0, le=MOST_EXAMPLES)
    probed: bool = False
    record: Printable = ""
    metrics: tuple[tuple[Printable, Annotated[int, Field(ge=0, lt=DEGREE)]], ...] = Field(
        default=(), max_length=DEGREE
    )
    work_seconds: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    encrypt_seconds: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    decrypt_seconds: float = Field(default=0.0, ge=0, allow_inf_nan=False)


class PlainMapHeader(Header):
    """Travels with a map that the server may see.

    Attributes:
        weight: examples / N_ref, the factor of the map.
        samples: that the map averages over.
        probed: whether random probes estimate the map.
        work_seconds: CPU seconds to compute it.
    """

    weight: float = Field(gt=0, allow_inf_nan=False)
    samples: int = Field(ge=1, le=MOST_EXAMPLES)
    probed: bool = False
    work_seconds: float = Field(default=0.0, ge=0, allow_inf_nan=False)


class KeySumRequest(Header):
    """Asks each contributor for its one-time secret, under pads that cancel in the sum.

    Attributes:
        kind: of the uploads.
        round: of the uploads.
        context: D, what they are bound to.
        contributors: the list S.
    """

    kind: Kind
    round: int = Field(ge=1)
    context: Digest
    contributors: Contributors


class KeyRequest(Header):
    """Key agreement, server to client.

    Attributes:
        step: ``hello`` asks who the client is; ``share`` asks a key holder (or, if there is none
            yet, a client that shall create the key) for envelopes to ``roster``; ``accept``
            delivers one.
        roster: node to raw public key in hexadecimal, of those that get the key.
        create: whether ``share`` may create the key.
        sender: the sealing client's public key in hexadecimal (``accept``).
        fingerprint: of the key that a resumed run needs (``hello``), or that the envelope must hold
            (``accept``); empty for any.
        key_index: how often the key has been rotated.
        opens: who opens the sums of the run; where the server does, ``hello`` is the only step.
    """

    step: Literal["hello", "share", "accept"]
    roster: dict[int, PublicKey] = {}
    create: bool = False
    sender: PublicKey | None = None
    fingerprint: MaybeFingerprint = ""
    key_index: KeyIndex = 0
    opens: Opens = "clients"


class KeyReply(Header):
    """Key agreement, client to server.

    Attributes:
        name: the client's identity P, an X25519 public key in hexadecimal.
        run_key: its identity E of this run.
        provisioned: whether its key comes from a file, so that it takes no part in agreement.
        fingerprint: of the key it holds; empty if it holds none.
        examples: its number of training examples.
    """

    name: PublicKey
    run_key: PublicKey
    provisioned: bool = False
    fingerprint: MaybeFingerprint = ""
    examples: int = Field(default=0, ge=0, le=MOST_EXAMPLES)

    @field_validator("name", "run_key")
    @classmethod
    def _usable(cls, key: str) -> str:
        # Contributors refuse to pad by such a point, and would be named for keys that do not come.
        if int.from_bytes(bytes.fromhex(key), "little") % 2**255 % FIELD in LOW_ORDER:
            raise ValueError("expected a public key, got a point of low order")
        return key


class MapRequest(Header):
    """Asks for a sensitivity map; the model travels beside it with its own header.

    Attributes:
        rule: ``vector`` or ``true_label``.
        maps: ``encrypted`` or ``plain``.
    """

    rule: Literal["vector", "true_label"]
    maps: Literal["encrypted", "plain"]


class MaskRequest(Header):
    """Asks a key holder to open the aggregated map and apply the policy.

    Attributes:
        origin: what the mask shall be made of, without a certificate.
        moves: whether the new mask may leave out what the present one covers.
        aggregate: what the aggregated map, which travels beside it, was made of.
    """

    origin: MaskOrigin
    moves: bool = False
    aggregate: AggregateHeader | None = None


class MaskReply(Header):
    """The answer to a :class:`MaskRequest`; the mask travels beside it.

    Attributes:
        certificate: of the mask, see :class:`MaskOrigin`.
    """

    certificate: Digest


class RekeyRequest(Header):
    """Asks a holder of two keys to make the tags and pads of the model anew under the later one.

    Attributes:
        key_index: of the later key.
        fingerprint: of the later key.
    """

    key_index: KeyIndex
    fingerprint: Fingerprint


class RekeyReply(Header):
    """The answer to a :class:`RekeyRequest`; the key sum travels beside it.

    Attributes:
        tags: of the same ciphertext under the later key.
        certificate: of the mask for the answers under the later key; empty if it had none.
    """

    tags: Tags = Field(max_length=16)
    certificate: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = ""


def _wrong_fields(error: ValidationError) -> str:
    """Name the fields that a validation refused; "content" where that cannot be said safely.

    The names can be the sender's: one that is not a plain word could forge lines of a log, and
    many could fill it.
    """
    if error.error_count() > MOST_PROBLEMS:
        return "content"
    details = error.errors(include_url=False, include_context=False, include_input=False)
    names = {str(item["loc"][0]) for item in details if item["loc"]}
    plain = {name if WORD.fullmatch(name) else "content" for name in names}
    return ", ".join(sorted(plain)) or "content"
