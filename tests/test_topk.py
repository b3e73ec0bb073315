import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsens._topk import CHUNK, top_k
from fedsens.errors import MaskError
from tests.mask.strategies import FLOATS, scores


def sorted_top_k(values, k):
    """The oracle: sort everything by value (descending), then by index."""
    selected = np.zeros(values.size, bool)
    selected[np.lexsort((np.arange(values.size), -values.astype(np.float64)))[:k]] = True
    return selected


@given(st.data(), st.booleans(), st.sampled_from(FLOATS))
def test_equals_a_full_sort(data, ties, dtype):
    size = data.draw(st.integers(0, 40))
    values = data.draw(scores(size, ties)).astype(dtype)
    for k in range(size + 1):
        selected = top_k(values, k)
        assert selected.dtype == np.bool_
        assert selected.tolist() == sorted_top_k(values, k).tolist()


@pytest.mark.parametrize("distinct", [1, 2, 3, 100, 10**9])
@pytest.mark.parametrize("share", [0.0, 1e-6, 0.1, 0.5, 0.999999, 1.0])
def test_equals_a_full_sort_beyond_one_chunk(distinct, share):
    values = np.random.default_rng(0).integers(0, distinct, CHUNK + 12345).astype(np.float32)
    k = int(share * values.size)
    assert np.array_equal(top_k(values, k), sorted_top_k(values, k))


def test_ties_go_to_the_lower_index():
    assert np.flatnonzero(top_k(np.array([1.0, 2, 1, 2, 1]), 3)).tolist() == [0, 1, 3]
    assert np.flatnonzero(top_k(np.zeros(3 * CHUNK), 5)).tolist() == [0, 1, 2, 3, 4]
    assert np.flatnonzero(top_k(np.array([0.0, -0.0, 0.0]), 2)).tolist() == [0, 1]


def test_input_stays_as_it_was():
    values = np.array([3.0, 1, 2])
    values.flags.writeable = False
    assert top_k(values, 1).tolist() == [True, False, False]


@pytest.mark.parametrize("k", [-1, 4])
def test_k_must_fit(k):
    with pytest.raises(MaskError, match=r"expected k in \[0, 3\]"):
        top_k(np.zeros(3), k)
