"""What the inputs refer to: one key, two identities, one small model. All of it is public."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedsens.crypto import SecretKey
from fedsens.files import Arrays
from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask
from fedsens.protocol.contributors import Contributors
from fedsens.protocol.headers import ModelHeader

CORPUS = Path(__file__).with_name("corpus")
RUN, PASSPHRASE = "1", "correct horse"
CHOSEN = (0, 4, 7, 10)


@cache
def key() -> SecretKey:
    """The key of all inputs, which is itself one."""
    return SecretKey.from_bytes((CORPUS / "key" / "seed-key").read_bytes())


@cache
def identities() -> tuple[X25519PrivateKey, X25519PrivateKey]:
    """The sender's and the recipient's."""
    sender, recipient = (X25519PrivateKey.from_private_bytes(bytes([i] * 32)) for i in (1, 2))
    return sender, recipient


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
def contributors() -> Contributors:
    """Who went into the ciphertext of the model."""
    return Contributors(run=RUN, reference=20.0, names=("5", "6"), weights=(0.25, 0.25))


@cache
def sent() -> ModelHeader:
    """What the server sent before it got an update."""
    return ModelHeader(
        round=3,
        model_round=2,
        layout=layout().to_json(),
        model_mask=mask().digest,
        mask=mask().digest,
        parameters=key().parameters,
        fingerprint=key().fingerprint,
        weight=0.5,
        contributors=contributors(),
        reference=20.0,
    )
