"""Models, layouts and masks to test the protocol with."""

import numpy as np
from fedsens.protocol.contributors import Contributors
from fedsens.protocol.model import ProtectedModel
from fedsens.protocol.tagged import encrypt_tagged
from fedsens.protocol.tags import Scope
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedsens import Aggregator, CkksParameters, EncryptionMask, ParameterLayout, generate_key
from fedsens.mask import partition

PARAMETERS = CkksParameters.preset("compact")
KEY = generate_key(PARAMETERS)
DTYPES = ("float16", "float32", "float64", "int64", "bool")


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
        return ProtectedModel(layout, mask, plain, None, weight, key.parameters, 3)
    contributors = Contributors(
        run="1", reference=10, names=("7", "8"), weights=(weight / 4, 3 * weight / 4)
    )
    scope = Scope("update", "1", 3, mask.digest, layout.digest, 10)
    batches = [
        encrypt_tagged(masked, each, key, scope, name)
        for name, each in contributors.summands.items()
    ]
    total = Aggregator(key.parameters).sum(batches)
    return ProtectedModel(
        layout, mask, plain, total, contributors.weight, key.parameters, 3, contributors
    )


@st.composite
def models(draw):
    """Arrays of a few small tensors of any type, and a mask: none, all or some."""
    kinds = draw(st.lists(st.sampled_from(DTYPES), max_size=5))
    shapes = hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=4)
    arrays = {f"t{i}": draw(hnp.arrays(kind, shapes)) for i, kind in enumerate(kinds)}
    layout = ParameterLayout.from_state_dict(arrays)
    selected = draw(
        st.one_of(
            hnp.arrays(bool, layout.size),
            st.booleans().map(lambda all_or_none: np.full(layout.size, all_or_none)),
        )
    )
    return arrays, layout, EncryptionMask(selected, layout.digest)
