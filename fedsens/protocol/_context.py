"""What everything that a client derives for an upload is bound to.

D, the digest of a :class:`RoundContext`, goes into the public polynomials of the encryption, into
the pads of the key answers, into the tags and into the client's record of its upload. Clients that
were told different things by the server therefore produce uploads that do not open together, which
also ends model inconsistency (Pasquini, Francati and Ateniese 2022) for the encrypted part.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from fedsens.crypto import CkksParameters, Opens
from fedsens.remainder import CentralPrivacy, RemainderTerms

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]  # SHA-256
Fingerprint = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
MaybeFingerprint = Annotated[str, Field(pattern="^([0-9a-f]{32})?$")]
Run = Annotated[str, Field(pattern="^[0-9]{1,20}$")]
# Other characters than these could forge lines of a log, or hide there.
Printable = Annotated[str, Field(pattern=r"^[^\p{C}\p{Zl}\p{Zp}]*$", max_length=256)]
#: What an upload is.
Kind = Literal["update", "map", "metrics"]


class RoundContext(BaseModel):
    """Everything that the clients of a round must have been told alike.

    Attributes:
        kind: ``update`` for trained models, ``map`` for sensitivity maps, ``metrics`` for those of
            evaluations.
        run: the Flower run.
        round: the server round.
        fingerprint: of the key K; empty where the server opens, which takes no key.
        parameters: CKKS parameters, the range R included.
        layout: digest of the model's layout.
        model_mask: digest of the mask that the model was split by when it was sent.
        mask: digest of the mask of the answer; None for what is encrypted whole.
        base: digest of all that was sent: model, ciphertext, list, configuration.
        reference: N_ref; a contributor's weight is its examples / N_ref.
        weighted_by: name of the metric that counts examples.
        remainder: what becomes of the plaintext remainder.
        opens: who opens the sum.
        dp: what clients do for central differential privacy.
        cohort: digest of the clients that were asked.
        version: of the protocol.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    run: Run
    round: int = Field(ge=1)
    fingerprint: MaybeFingerprint
    parameters: CkksParameters
    layout: Digest
    model_mask: Digest
    mask: Digest | None = None
    base: Digest
    reference: float = Field(gt=0, allow_inf_nan=False)
    weighted_by: Printable = "num-examples"
    remainder: RemainderTerms = RemainderTerms()
    opens: Opens = "clients"
    dp: CentralPrivacy | None = None
    cohort: Digest
    version: Literal[3] = 3

    @property
    def digest(self) -> bytes:
        """D, 32 bytes that are equal exactly for equal contexts."""
        # Python's own JSON: floats are written so that they read back as the same number.
        fields = self.model_dump(mode="json", exclude=None if self.dp else {"dp"})
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(b"fedsens context 3" + text.encode()).digest()
