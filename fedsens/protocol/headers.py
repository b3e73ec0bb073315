"""The headers of fedsens messages: frozen, versioned, checked on arrival.

A header travels as JSON text in a ConfigRecord. Masks and ciphertexts travel beside it as bytes.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedsens.crypto.params import CkksParameters
from fedsens.errors import ProtocolError
from fedsens.protocol.contributors import MOST_WEIGHT, Contributors, Name
from fedsens.protocol.fields import wrong_fields
from fedsens.remainder import RemainderTerms

VERSION = 2  # 2: tags inside the ciphertexts, and who contributed beside them
MOST = 2**53  # counts up to here are exact as floats
PublicKey = Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]  # X25519, hexadecimal, or none

Fingerprint = Annotated[str, Field(pattern="^([0-9a-f]{32})?$")]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]  # SHA-256
# Other characters than these could forge lines of a log, or hide there.
Printable = Annotated[str, Field(pattern=r"^[^\p{C}\p{Zl}\p{Zp}]*$", max_length=256)]
Generation = Annotated[int, Field(ge=0, le=2**20)]


class Header(BaseModel):
    """Base of all headers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[2] = 2

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
                f"expected a {cls.__name__} of protocol version {VERSION}, got one with wrong "
                f"{wrong_fields(error)}; use the same fedsens version on the server and all clients"
            ) from None


class ModelHeader(Header):
    """Travels with every model that the server sends.

    Attributes:
        round: the server round, from 1.
        model_round: the round whose result the model is; 0 for the initial model.
        layout: the model's layout as JSON.
        model_mask: digest of the mask that the model in this message is split by.
        mask: digest of the mask that the answer must be split by.
        parameters: CKKS parameters of the masked part.
        fingerprint: of the agreed key; empty if nothing is encrypted.
        generation: how often the key has been rotated.
        weight: sum of the weights n_i / N_ref in the aggregated ciphertext; 0 if there is none.
        contributors: who went into the aggregated ciphertext; None if there is none.
        reference: N_ref of this round; the answer's weight is its examples / N_ref.
        weighted_by: name of the metric that counts examples.
        remainder: what becomes of the plaintext remainder of the answer.
    """

    round: int = Field(ge=1)
    model_round: int = Field(ge=0)
    layout: str
    model_mask: Digest
    mask: Digest
    parameters: CkksParameters
    fingerprint: Fingerprint = ""
    generation: Generation = 0
    weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    contributors: Contributors | None = None
    reference: float = Field(gt=0, allow_inf_nan=False)
    weighted_by: Printable = "num-examples"
    remainder: RemainderTerms = RemainderTerms()


class UpdateHeader(Header):
    """Travels with every trained model that a client answers with.

    Attributes:
        round: copied from the model.
        mask: digest of the mask that the answer is split by.
        layout: digest of the layout.
        fingerprint: of the client's key.
        weight: examples / N_ref, the factor of the encrypted values.
        contributor: by which name the client tagged them.
        encrypt_seconds: CPU seconds to encrypt.
        decrypt_seconds: CPU seconds to decrypt the model that came with the message.
    """

    round: int = Field(ge=1)
    mask: Digest
    layout: Digest
    fingerprint: Fingerprint = ""
    weight: float = Field(gt=0, allow_inf_nan=False)
    contributor: Name
    encrypt_seconds: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    decrypt_seconds: float = Field(default=0.0, ge=0, allow_inf_nan=False)


class KeyRequest(Header):
    """Key agreement, server to client.

    Attributes:
        step: ``hello`` asks who the client is; ``share`` asks a key holder (or, if there is none
            yet, a client that shall create the key) for envelopes to ``roster``; ``accept``
            delivers one.
        parameters: CKKS parameters that the key must cover.
        roster: node to raw public key in hexadecimal, of those that get the key.
        create: whether ``share`` may create the key.
        sender: the sealing client's public key in hexadecimal (``accept``).
        fingerprint: of the key that a resumed run needs (``hello``); empty for any.
        generation: how often the key has been rotated.
    """

    step: Literal["hello", "share", "accept"]
    parameters: CkksParameters
    roster: dict[int, PublicKey] = {}
    create: bool = False
    sender: PublicKey = ""
    fingerprint: Fingerprint = ""
    generation: Generation = 0


class KeyReply(Header):
    """Key agreement, client to server.

    Attributes:
        public_key: the client's X25519 public key in hexadecimal; empty if its key is provisioned.
        fingerprint: of the key it holds; empty if it holds none.
        examples: its number of training examples.
    """

    public_key: PublicKey
    fingerprint: Fingerprint = ""
    examples: int = Field(default=0, ge=0, le=MOST)


class MapRequest(Header):
    """Asks for a sensitivity map; the model travels beside it with its own header.

    Attributes:
        rule: ``vector`` or ``true_label``.
        maps: ``encrypted`` or ``plain``.
        reference: the map is weighted by examples / reference.
    """

    rule: Literal["vector", "true_label"]
    maps: Literal["encrypted", "plain"]
    reference: float = Field(gt=0, allow_inf_nan=False)


class MapReply(Header):
    """A client's answer to a :class:`MapRequest`; the map itself travels beside it.

    Attributes:
        samples: samples that the map averages over.
        seconds: CPU seconds to compute the map.
        weight: examples / reference, the factor of an encrypted map.
        contributor: by which name the client tagged it.
    """

    samples: int = Field(ge=1, le=MOST)
    seconds: float = Field(ge=0, allow_inf_nan=False)
    weight: float = Field(gt=0, le=MOST_WEIGHT, allow_inf_nan=False)
    contributor: Name


class MaskRequest(Header):
    """Asks a key holder to open the aggregated map and apply the policy.

    Attributes:
        policy: registered mask policy.
        ratio: share to encrypt.
        force: forced layers.
        seed: seed of random policies.
        scores: whether an aggregated, encrypted map travels beside it.
        contributors: who went into that map.
    """

    policy: Printable
    ratio: float = Field(ge=0, le=1)
    force: tuple[Printable, ...] = ()
    seed: int = Field(default=0, ge=0)
    scores: bool
    contributors: Contributors | None = None


class RotateRequest(Header):
    """Asks a holder of two keys to encrypt the model, which travels beside it, under the new one.

    Attributes:
        generation: of the new key.
        fingerprint: of the new key.
    """

    generation: Generation
    fingerprint: Fingerprint
