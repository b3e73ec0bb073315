"""Hypothesis strategies for layouts, scores and masks."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask

DIGEST = "ab" * 32
FLOATS = ("float16", "float32", "float64")

seeds = st.integers(0, 2**32 - 1)
ratios = st.one_of(st.sampled_from([0.0, 0.01, 0.1, 0.29, 0.5, 1.0]), st.floats(0, 1))
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@st.composite
def layouts(draw, min_size=0):
    """Layouts of a few small tensors, scalars, empty and integer ones among them."""
    tensors = draw(st.lists(st.tuples(shapes, st.sampled_from(["float32", "int64"])), max_size=6))
    if min_size:
        tensors.append(((min_size,), "float32"))
    return ParameterLayout.from_shapes(
        (f"layer{i // 2}.{'bias' if i % 2 else 'weight'}", shape, dtype)
        for i, (shape, dtype) in enumerate(tensors)
    )


def scores(size, ties=True):
    """Float64 vectors: few distinct values, zero among them, or (ties=False) all distinct."""
    if ties:
        return hnp.arrays(np.float64, size, elements=st.integers(0, 3).map(float))
    return st.permutations(range(size)).map(lambda order: np.array(order, np.float64))


def masks(max_size=70):
    """Masks over any number of coordinates, none and all selected included."""
    selections = st.one_of(
        hnp.arrays(np.bool_, st.integers(0, max_size)),
        st.integers(0, max_size).map(lambda size: np.ones(size, bool)),
        st.integers(0, max_size).map(lambda size: np.zeros(size, bool)),
    )
    return selections.map(lambda selected: EncryptionMask(selected, DIGEST))


@st.composite
def models(draw):
    """Arrays of a few small tensors of any type, and a mask: none, all or some."""
    kinds = draw(st.lists(st.sampled_from((*FLOATS, "int64", "bool")), max_size=5))
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
