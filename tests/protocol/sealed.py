"""A model as the server holds it after several clients have encrypted part of it."""

import numpy as np
from fedsens.protocol.contributors import Contributors
from fedsens.protocol.model import ProtectedModel
from fedsens.protocol.tagged import encrypt_tagged
from fedsens.protocol.tags import Scope

from fedsens import Aggregator, EncryptionMask, ParameterLayout
from fedsens.mask import partition


def protected(arrays, key, share=0.5, weight=0.5, summands=2):
    """A model whose first coordinates are encrypted, as the sum of some clients."""
    layout = ParameterLayout.from_state_dict(arrays)
    mask = EncryptionMask(np.arange(layout.size) < share * layout.size, layout.digest)
    plain, masked = partition(arrays, mask, layout)
    names, each = tuple(map(str, range(summands))), weight / summands
    contributors = Contributors(run="1", reference=10, names=names, weights=(each,) * summands)
    scope = Scope("update", "1", 1, mask.digest, layout.digest, 10)
    uploads = [encrypt_tagged(masked, each, key, scope, name) for name in names]
    total = Aggregator(key.parameters).sum(uploads)
    parts = (layout, mask, plain, total, contributors.weight, key.parameters, 1)
    return ProtectedModel(*parts, contributors)
