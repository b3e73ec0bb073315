"""What the inputs refer to: one key, two clients, one small model. All of it is public."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from flwr.app import Metadata

from fedsens._files import Arrays
from fedsens.crypto import CkksParameters, OneTimeSecret
from fedsens.flower._phase import Phase
from fedsens.keys import FederationKey, PendingUpload
from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask
from fedsens.protocol import (
    AggregateHeader,
    Contributor,
    Contributors,
    ModelHeader,
    Party,
    RoundContext,
    tag_count,
)
from fedsens.protocol._contributors import cohort_digest

CORPUS = Path(__file__).with_name("corpus")
RUN, NODE, PASSPHRASE = 1, 5, "correct horse"
KEY_INDEX = 1  # that envelopes are sealed for
REFERENCE = 20.0
DECRYPTED_IN = b"the context of the ciphertexts that are decrypted"
PARAMETERS = CkksParameters.preset("compact")  # of the model
CHOSEN = (0, 4, 7, 10)
SENT = Metadata(RUN, "2", 1, NODE, "", "6", 7.0, 8.0, "train")  # the question to one client

Identities = tuple[X25519PrivateKey, X25519PrivateKey]


@cache
def key() -> FederationKey:
    """K."""
    return FederationKey(bytes(range(32)))


@cache
def identities() -> tuple[Identities, ...]:
    """P and E of two clients, in ascending order of their names; the first is this client."""
    numbers = [(X25519PrivateKey.from_private_bytes(bytes([i] * 32)), i) for i in (1, 2)]
    ordered = sorted(numbers, key=lambda pair: pair[0].public_key().public_bytes_raw())
    return tuple(
        (lasting, X25519PrivateKey.from_private_bytes(bytes([i + 2] * 32)))
        for lasting, i in ordered
    )


@cache
def cohort() -> tuple[Party, ...]:
    """The two clients as the server knows them."""
    return tuple(
        Party(**{
            name: each.public_key().public_bytes_raw().hex()
            for name, each in zip(("name", "run_key"), both, strict=True)
        })
        for both in identities()
    )


@cache
def contributors() -> Contributors:
    """Whose uploads are in every sum."""
    return Contributors.of(
        Contributor(name=party.name, weight=0.25, nonce=f"{i:032x}")
        for i, party in enumerate(cohort())
    )


@cache
def secret() -> OneTimeSecret:
    """What opens the ciphertexts that are decrypted, and this client's own upload."""
    return OneTimeSecret.from_array(np.arange(4096) % 43 - 21)


@cache
def arrays() -> Arrays:
    """A model with every kind of tensor."""
    return {
        "conv.weight": np.arange(6, dtype=np.float32).reshape(2, 3) / 8,
        "half": np.arange(4, dtype=np.float16),
        "wide": np.array(0.5),
        "steps": np.array(7),
        "used": np.array([True, False]),
    }


@cache
def layout() -> ParameterLayout:
    """The model's."""
    return ParameterLayout.from_state_dict(arrays())


@cache
def mask() -> EncryptionMask:
    """The mask that messages and files are split by."""
    selected = np.zeros(layout().size, bool)
    selected[list(CHOSEN)] = True
    return EncryptionMask(selected, layout().digest)


@cache
def model_context() -> RoundContext:
    """What the uploads in the model were bound to."""
    return RoundContext(
        kind="update",
        run=str(RUN),
        round=2,
        fingerprint=key().fingerprint,
        parameters=PARAMETERS,
        layout=layout().digest,
        model_mask=mask().digest,
        mask=mask().digest,
        base="ab" * 32,
        reference=REFERENCE,
        cohort=cohort_digest(cohort()),
    )


@cache
def sent() -> ModelHeader:
    """What the server sent before it got an upload; the tags of the model are none of its."""
    told = AggregateHeader(
        context=model_context(),
        contributors=contributors(),
        tags=(0,) * tag_count(PARAMETERS),
        fingerprint=key().fingerprint,
    )
    return ModelHeader(
        round=3,
        model_round=2,
        layout=layout().to_json(),
        model_mask=mask().digest,
        mask=mask().digest,
        parameters=PARAMETERS,
        fingerprint=key().fingerprint,
        aggregate=told,
        cohort=cohort(),
        reference=REFERENCE,
    )


@cache
def phase() -> Phase:
    """The server's question."""
    return Phase("train", sent().round, "train", [SENT], sent(), "cd" * 32)


@cache
def update_context() -> RoundContext:
    """What answers to the question are bound to."""
    return phase().context("update")


@cache
def map_context() -> RoundContext:
    """What maps of the same round are bound to."""
    return phase().context("map")


@cache
def pending() -> PendingUpload:
    """This client's upload, whose list is to come."""
    mine = contributors().members[0]
    return PendingUpload(
        secret=secret().to_array(),
        weight=mine.weight,
        nonce=bytes.fromhex(mine.nonce),
        context=update_context().digest,
        cohort=tuple((party.name, party.run_key) for party in cohort()),
    )
