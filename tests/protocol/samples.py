"""Models, layouts and masks to test the protocol with."""

import numpy as np

from fedsens import EncryptionMask, ParameterLayout
from fedsens.mask import partition
from fedsens.protocol import ProtectedModel
from tests.keys.uploads import KEY, PARAMETERS, aggregate, context_of, sender, upload

ROUND = 3


def mask_of(layout, *chosen):
    """The mask of some coordinates."""
    selected = np.zeros(layout.size, bool)
    selected[list(chosen)] = True
    return EncryptionMask(selected, layout.digest)


def model(seed=0):
    """Arrays of every kind that a state dict can hold."""
    rng = np.random.default_rng(seed)
    return {
        "conv.weight": rng.normal(size=(2, 3)).astype(np.float32),
        "half": rng.normal(size=4).astype(np.float16),
        "wide": rng.normal(size=()),
        "steps": np.array(7),
        "used": np.array([True, False]),
        "empty": np.empty((0, 3), np.float32),
    }


def protect(arrays, chosen, weight=0.5, key=KEY):
    """A model as the server holds it after a round."""
    layout = ParameterLayout.from_state_dict(arrays)
    mask = mask_of(layout, *chosen)
    plain, masked = partition(arrays, mask, layout)
    if not mask.k:
        return ProtectedModel(layout, mask, plain, None, PARAMETERS, ROUND)
    senders = [sender(0), sender(1)]
    context = context_of(
        senders,
        round=ROUND,
        fingerprint=key.fingerprint,
        layout=layout.digest,
        model_mask=mask.digest,
        mask=mask.digest,
    )
    uploads = [
        upload(by, masked, share * weight, context, key)
        for by, share in zip(senders, (0.25, 0.75), strict=True)
    ]
    total = aggregate(uploads, context, key)
    return ProtectedModel(layout, mask, plain, total, PARAMETERS, ROUND)
