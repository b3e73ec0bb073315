from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsens.crypto import Aggregator

from .kit import KINDS, NAMES, N, decryptor, encryptor, parameters, round_trip, vector

SIZES = (0, 1, N - 1, N, N + 1, 3 * N + 7)
names = st.sampled_from(NAMES)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_a_sum_is_within_the_stated_bound(name, kind, size):
    limit = parameters(name).value_range
    for clients in (1, 3):
        vectors = [vector(kind, size, limit / clients, seed) for seed in range(clients)]
        total = round_trip(name, vectors)
        assert total.shape == (size,)
        assert total.dtype == np.float64
        error = np.abs(total - np.sum(vectors, axis=0))
        assert (error <= parameters(name).error_bound(clients)).all()


@settings(max_examples=40, deadline=None)
@given(
    name=names,
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=10),
    size=st.integers(1, 2 * N + 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_mixture_of_clients_is_within_the_stated_bound(name, kinds, size, seed):
    limit = parameters(name).value_range / len(kinds)
    vectors = [vector(kind, size, limit, seed + index) for index, kind in enumerate(kinds)]
    error = np.abs(round_trip(name, vectors) - np.sum(vectors, axis=0))
    assert (error <= parameters(name).error_bound(len(kinds))).all()


@pytest.mark.parametrize("kind", KINDS)
def test_compact_keeps_a_ten_client_mean_within_one_millionth(kind):
    size, limit = 32 * N, parameters("compact").value_range
    vectors = [vector(kind, size, limit, seed) / 10 for seed in range(10)]
    error = np.abs(round_trip("compact", vectors) - np.sum(vectors, axis=0))
    assert error.max() <= 1e-6
    assert parameters("compact").error_bound(10) <= 1e-6


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("clients", [1, 10])
def test_the_bound_is_about_seven_measured_standard_deviations(name, clients):
    vectors = [vector("random", 16 * N, 1.0, seed) for seed in range(clients)]
    error = round_trip(name, vectors) - np.sum(vectors, axis=0)
    bound = parameters(name).error_bound(clients)
    assert abs(error.mean()) < 5 * error.std() / np.sqrt(error.size)
    # For "precise" the float64 transform's worst case is most of the bound.
    assert (0.1 if name == "precise" else 0.94) < 7 * error.std() / bound < 1.02


def test_the_bound_holds_where_all_clients_round_alike():
    clients = 64
    vectors = [np.full(N, 0.01)] * clients
    error = np.concatenate([round_trip("compact", vectors) - 0.64 for _ in range(4)])
    bound = parameters("compact").error_bound(clients)
    assert np.abs(error).max() <= bound
    assert 7 * error.std() == pytest.approx(bound, rel=0.05)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.longdouble, ">f4"])
def test_every_float_type_is_encrypted_as_its_own_value(kind):
    values = vector("random", N + 3, 1.0).astype(kind)
    total = round_trip("balanced", [values])
    assert np.abs(total - values.astype(np.float64)).max() <= parameters("balanced").error_bound()


@pytest.mark.parametrize("scale", [0.0, 1 / 3, -2.0])
def test_values_are_scaled_in_double_precision(scale):
    values = vector("random", N + 3, 0.1).astype(np.float32)
    wide = values.astype(np.float64) * scale
    total = decryptor("precise").decrypt(encryptor("precise").encrypt(values, scale=scale))
    assert np.abs(total - wide).max() <= parameters("precise").error_bound()


def test_a_strided_view_is_encrypted_and_left_as_it_was():
    values = vector("random", 2 * N, 1.0)
    before = values.copy()
    total = round_trip("balanced", [values[::-2]])
    assert np.abs(total - before[::-2]).max() <= parameters("balanced").error_bound()
    assert (values == before).all()


@given(order=st.permutations(range(5)), cut=st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_order_grouping_and_pace_of_adding_do_not_matter(order, cut):
    blobs = blobs_of_five_clients()
    whole = decryptor("compact").decrypt(Aggregator(parameters("compact")).sum(blobs))

    shuffled = [blobs[index] for index in order]
    halves = [
        Aggregator(parameters("compact")).sum(part) for part in (shuffled[:cut], shuffled[cut:])
    ]
    of_sums = Aggregator(parameters("compact")).sum(halves)

    one_by_one = Aggregator(parameters("compact"))
    for blob in shuffled:
        one_by_one.add(blob)
        one_by_one.result()  # reading the sum does not change it
    assert one_by_one.summands == 5
    for other in (of_sums, one_by_one.result()):
        assert (decryptor("compact").decrypt(other) == whole).all()


@cache
def blobs_of_five_clients():
    return [encryptor("compact").encrypt(vector("random", N + 1, 1.0, s)) for s in range(5)]


def test_encrypting_twice_gives_different_bytes():
    values = np.zeros(N)
    assert encryptor("compact").encrypt(values) != encryptor("compact").encrypt(values)
