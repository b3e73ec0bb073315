import copy
import pickle
import traceback

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsens.crypto import OneTimeSecret
from fedsens.errors import KeyMismatchError

from .kit import N, encrypt

_, SECRET = encrypt("precise", np.zeros(1))
_, OTHER = encrypt("precise", np.zeros(1))


def whole(value=0, kind=np.int64):
    array = np.zeros(N, kind)
    array[7] = value
    return array


def test_an_array_and_back():
    array = SECRET.to_array()
    assert (array.dtype, array.shape) == (np.int64, (N,))
    back = OneTimeSecret.from_array(array)
    assert (back.to_array() == array).all()
    assert back.summands == 1


def test_arrays_are_copies():
    array = SECRET.to_array()
    held = OneTimeSecret.from_array(array)
    array += 1
    held.to_array()[:] = 0
    assert (held.to_array() == array - 1).all()
    assert (SECRET.to_array() == array - 1).all()


def test_adding_adds_numbers_and_counts():
    total = SECRET + OTHER + SECRET
    assert total.summands == 3
    assert (total.to_array() == 2 * SECRET.to_array() + OTHER.to_array()).all()
    assert SECRET.summands == 1
    with pytest.raises(TypeError):
        SECRET + OTHER.to_array()


@settings(deadline=None)
@given(summands=st.integers(1, 2000), excess=st.integers(-3, 3), sign=st.sampled_from([1, -1]))
def test_the_bound_is_21_for_each_summand(summands, excess, sign):
    array = whole(sign * (21 * summands + excess))
    if excess <= 0:
        assert OneTimeSecret.from_array(array, summands).summands == summands
    else:
        with pytest.raises(KeyMismatchError, match=f"for each of {summands} secrets"):
            OneTimeSecret.from_array(array, summands)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(N - 1, np.int64),
        np.zeros(N + 1, np.int64),
        np.zeros((1, N), np.int64),
        np.zeros(0, np.int64),
        np.zeros(N),
        np.zeros(N, bool),
        np.zeros(N, object),
        np.zeros(N, np.int64),
        whole(22),
        whole(-22),
        whole(np.iinfo(np.int64).min),
        whole(np.iinfo(np.int64).max),
        whole(np.iinfo(np.uint64).max, np.uint64),
    ],
)
def test_what_cannot_be_a_secret_is_refused(array):
    with pytest.raises(KeyMismatchError, match="expected 4096 whole numbers"):
        OneTimeSecret.from_array(array)


@pytest.mark.parametrize("summands", [0, -1])
def test_a_sum_of_nothing_is_refused(summands):
    with pytest.raises(KeyMismatchError):
        OneTimeSecret.from_array(whole(), summands)


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.uint8, np.uint64, ">i4"])
def test_every_integer_type_is_read(kind):
    assert OneTimeSecret.from_array(whole(21, kind)).to_array()[7] == 21


def test_a_refusal_shows_no_number_of_it():
    array = whole(7654321)
    with pytest.raises(KeyMismatchError) as caught:
        OneTimeSecret.from_array(array)
    assert "7654321" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("show", [repr, str, "{!r:>1}".format, lambda secret: f"{secret}"])
def test_showing_a_secret_shows_its_count_alone(show):
    assert show(SECRET + OTHER) == "OneTimeSecret(summands=2)"


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, *(lambda s, p=p: pickle.dumps(s, p) for p in range(6))],
)
def test_a_secret_is_neither_pickled_nor_copied(duplicate):
    with pytest.raises(TypeError, match="not picklable"):
        duplicate(SECRET)
