"""What the codec promises, for any clients, lengths and values."""

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsens.crypto import Aggregator, Decryptor, Encryptor, OneTimeSecret
from fedsens.errors import KeyMismatchError, ValueRangeError

from .ring import CONTEXT, KINDS, NAMES, N, decrypt, encrypt, parameters, round_trip, sum_of, vector

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
    size=st.integers(0, 2 * N + 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_mixture_of_clients_is_within_the_stated_bound(name, kinds, size, seed):
    limit = parameters(name).value_range / len(kinds)
    vectors = [vector(kind, size, limit, seed + index) for index, kind in enumerate(kinds)]
    error = np.abs(round_trip(name, vectors) - np.sum(vectors, axis=0))
    assert (error <= parameters(name).error_bound(len(kinds))).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "share"), [("compact", 1e-6), ("precise", 1e-8)])
def test_a_ten_client_mean_has_the_error_that_the_preset_is_chosen_for(name, share, kind):
    size, limit = 16 * N, parameters(name).value_range
    vectors = [vector(kind, size, limit, seed) / 10 for seed in range(10)]
    error = round_trip(name, vectors) - np.sum(vectors, axis=0)
    assert np.sqrt(np.mean(error**2)) <= share * limit
    assert np.sqrt(np.mean(error**2)) == pytest.approx(parameters(name).error_rms(10), rel=0.05)


@pytest.mark.parametrize("name", ["tiny", "compact", "precise"])
@pytest.mark.parametrize("clients", [1, 10])
def test_the_error_is_the_stated_one_and_unbiased(name, clients):
    vectors = [vector("random", 16 * N, 1.0, seed) for seed in range(clients)]
    error = round_trip(name, vectors) - np.sum(vectors, axis=0)
    assert abs(error.mean()) < 5 * error.std() / np.sqrt(error.size)
    assert error.std() == pytest.approx(parameters(name).error_rms(clients), rel=0.03)
    assert parameters(name).error_bound(clients) == pytest.approx(7 * error.std(), rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_where_nothing_is_rounded_the_transform_decides_and_is_within_its_statement(kind):
    limit = parameters("exact").value_range
    vectors = [vector(kind, 16 * N, limit / 4, seed) for seed in range(4)]
    error = round_trip("exact", vectors) - np.sum(vectors, axis=0)
    assert np.sqrt(np.mean(error**2)) <= parameters("exact").error_rms(4)


def test_rounding_does_not_add_up_where_all_clients_values_are_the_same():
    """What is rounded away depends on the ciphertext, which is uniform, not on the values."""
    clients = 64
    error = round_trip("compact", [np.full(N, 0.01)] * clients) - 0.64
    assert error.std() == pytest.approx(parameters("compact").error_rms(clients), rel=0.08)
    assert abs(error.mean()) < 5 * error.std() / np.sqrt(N)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.longdouble, ">f4"])
def test_every_float_type_is_encrypted_as_its_own_value(kind):
    values = vector("random", N + 3, 1.0).astype(kind)
    total = round_trip("precise", [values])
    assert np.abs(total - values.astype(np.float64)).max() <= parameters("precise").error_bound()


@pytest.mark.parametrize("scale", [0.0, 1 / 3, -2.0])
def test_values_are_scaled_in_double_precision(scale):
    values = vector("random", N + 3, 0.1).astype(np.float32)
    wide = values.astype(np.float64) * scale
    total = decrypt("exact", *encrypt("exact", values, scale=scale))
    assert np.abs(total - wide).max() <= parameters("exact").error_bound()


def test_a_strided_view_is_encrypted_and_left_as_it_was():
    values = vector("random", 2 * N, 1.0)
    before = values.copy()
    total = round_trip("precise", [values[::-2]])
    assert np.abs(total - before[::-2]).max() <= parameters("precise").error_bound()
    assert (values == before).all()


@cache
def five_uploads():
    pairs = [encrypt("compact", vector("random", N + 1, 1.0, seed)) for seed in range(5)]
    return [blob for blob, _ in pairs], [secret for _, secret in pairs]


@given(order=st.permutations(range(5)), cut=st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_order_grouping_and_pace_of_adding_do_not_matter(order, cut):
    blobs, secrets = five_uploads()
    whole = Aggregator(parameters("compact")).sum(blobs)

    shuffled = [blobs[index] for index in order]
    halves = [
        Aggregator(parameters("compact")).sum(part) for part in (shuffled[:cut], shuffled[cut:])
    ]
    assert Aggregator(parameters("compact")).sum(halves) == whole

    one_by_one = Aggregator(parameters("compact"))
    for blob in shuffled:
        one_by_one.add(blob)
        one_by_one.result()  # reading the sum does not change it
    assert one_by_one.contributions == 5
    assert one_by_one.result() == whole
    opened = decrypt("compact", whole, sum_of(secrets))
    shuffled_secrets = sum_of(secrets[index] for index in order)
    assert (decrypt("compact", whole, shuffled_secrets) == opened).all()


def test_encrypting_twice_takes_a_new_secret_and_gives_unrelated_bytes():
    encryptor = Encryptor(parameters("compact"), CONTEXT)
    (first, one), (second, two) = (encryptor.encrypt(np.zeros(N)) for _ in range(2))
    assert first != second
    assert (one.to_array() != two.to_array()).any()
    # Uniform residues agree once in 16 million.
    assert sum(a == b for a, b in zip(first[40:-4], second[40:-4], strict=True)) < N * 3 / 100


def test_threads_do_not_disturb_each_other():
    """Every call has SEAL objects and a file of its own."""
    vectors = [vector("random", 3 * N, 1.0, seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        opened = list(
            pool.map(lambda values: decrypt("precise", *encrypt("precise", values)), vectors)
        )
    bound = parameters("precise").error_bound()
    assert np.abs(np.array(opened) - np.array(vectors)).max() <= bound


def refused(name, data, secret, context=CONTEXT):
    with pytest.raises(ValueRangeError, match=r"context or the secrets are not those of this sum"):
        Decryptor(parameters(name), context).decrypt(data, secret)


@pytest.mark.parametrize("size", [1, N, 2 * N + 1])
@pytest.mark.parametrize("name", NAMES)
def test_another_context_opens_nothing(name, size):
    blob, secret = encrypt(name, vector("random", size, 1.0))
    for context in (b"", b"run 7, round 4", CONTEXT + b"\0"):
        refused(name, blob, secret, context)


@settings(max_examples=25, deadline=None)
@given(name=names, clients=st.integers(2, 4), seed=st.integers(0, 2**32), size=st.integers(1, N))
def test_any_other_set_of_secrets_opens_nothing(name, clients, seed, size):
    """A missing one, one too many, a stranger's, one twice, one that differs in one place."""
    pairs = [encrypt(name, vector("random", size, 0.1, seed + i)) for i in range(clients)]
    secrets = [secret for _, secret in pairs]
    total = Aggregator(parameters(name)).sum([blob for blob, _ in pairs])
    _, stranger = encrypt(name, np.zeros(1))
    rest = sum_of(secrets[1:])
    for other in (rest, sum_of([*secrets, stranger])):
        with pytest.raises(KeyMismatchError, match=f"the sum of {clients} secrets, got that of"):
            decrypt(name, total, other)
        # Even where the number is claimed to be right.
        claimed = OneTimeSecret.from_array(
            np.clip(other.to_array(), -21 * clients, 21 * clients), clients
        )
        refused(name, total, claimed)
    refused(name, total, rest + stranger)
    refused(name, total, rest + secrets[-1])
    changed = sum_of(secrets).to_array()
    changed[seed % N] += 1 if changed[seed % N] <= 0 else -1
    refused(name, total, OneTimeSecret.from_array(changed, clients))


def test_clients_of_different_contexts_do_not_add_up():
    """What clients that were told different things upload opens for nobody."""
    params = parameters("precise")
    one, first = Encryptor(params, b"told this").encrypt(np.ones(N) / 2)
    two, second = Encryptor(params, b"told that").encrypt(np.ones(N) / 2)
    total = Aggregator(params).sum([one, two])
    for context in (b"told this", b"told that"):
        refused("precise", total, first + second, context)


def test_the_same_context_under_other_parameters_has_other_polynomials():
    """So a secret cannot be used against residues of another preset."""
    wide, narrow = parameters("precise"), parameters("compact")
    blob, secret = Encryptor(wide, CONTEXT).encrypt(np.zeros(N))
    with pytest.raises(KeyMismatchError, match="under the parameters"):
        Decryptor(narrow, CONTEXT).decrypt(blob, secret)
