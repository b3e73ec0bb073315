"""NumPy files of another party: what np.save writes is read, and nothing else."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedsens.flower._records import read_npy

KINDS = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?"),
)


def saved(array):
    with io.BytesIO() as file:
        np.save(file, array)
        return file.getvalue()


@settings(deadline=None, max_examples=200)
@given(array=hnp.arrays(KINDS, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0)))
def test_what_numpy_saves_comes_back(array):
    for each in (array, array.T, array[..., ::-1] if array.ndim else array):
        again, usual = read_npy(saved(each)), np.load(io.BytesIO(saved(each)))
        assert (again.dtype, again.shape, again.flags.writeable) == (usual.dtype, usual.shape, True)
        assert again.tobytes() == usual.tobytes()
        assert again.flags.f_contiguous == usual.flags.f_contiguous


@pytest.mark.parametrize(
    "array",
    [
        np.array(["text"]),
        np.array([1j]),
        np.zeros(2, "f4,i4"),
        np.zeros(1, "V3"),
        np.zeros(1, "M8[s]"),
    ],
    ids=lambda array: array.dtype.kind,
)
def test_other_types_are_refused(array):
    with pytest.raises(ValueError, match="another"):
        read_npy(saved(array))


@pytest.mark.parametrize("cut", [-1, 1, 0])
def test_missing_and_spare_bytes_are_refused(cut):
    data = saved(np.ones(3))
    data = data[:cut] if cut < 0 else data + bytes(8 * cut)
    if cut:
        with pytest.raises(ValueError, match="another size"):
            read_npy(data)
    else:
        assert read_npy(data).sum() == 3


def test_a_claim_of_terabytes_takes_no_memory():
    data = saved(np.ones(3)).replace(b"(3,), }           ", b"(300000000000,), }")
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="another size"):
            read_npy(data)
        assert tracemalloc.get_traced_memory()[1] < 2**16
    finally:
        tracemalloc.stop()
