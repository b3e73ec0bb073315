import gc

import numpy as np
import pytest

from fedsens.crypto import Aggregator, Encryptor, SecretKey, generate_key
from fedsens.errors import CiphertextError, CryptoError, KeyMismatchError

from .kit import N, decryptor, encryptor, key, parameters

COMPACT = parameters("compact")
VALUES = np.random.default_rng(0).normal(0, 0.1, N + 9)
DATA = encryptor("compact").encrypt(VALUES)


def reachable(root):
    """Every object that can be reached from ``root``, types and modules left out."""
    seen, queue = {}, [root]
    while queue:
        item = queue.pop()
        if id(item) not in seen and not isinstance(item, type | type(gc)):
            seen[id(item)] = item
            queue += gc.get_referents(item)
    return seen.values()


def test_it_is_built_from_public_parameters_and_holds_no_key():
    aggregator = Aggregator(COMPACT)
    aggregator.add(DATA)
    public = [name for name in vars(Aggregator) if not name.startswith("_")]
    assert public == ["summands", "add", "result", "sum"]
    kinds = {type(item).__name__ for item in reachable(vars(aggregator))}
    assert "Ciphertext" in kinds
    assert not kinds & {"SecretKey", "Decryptor", "Encryptor", "KeyGenerator"}


def test_nothing_that_it_holds_contains_the_secret():
    aggregator = Aggregator(COMPACT)
    aggregator.add(DATA)
    secret = key("compact")._secrets[COMPACT]
    for item in reachable(vars(aggregator)):
        if isinstance(item, bytes | str):
            text = item if isinstance(item, bytes) else item.encode()
            assert secret[-40:] not in text
    assert not any(isinstance(item, SecretKey) for item in reachable(vars(aggregator)))


def test_an_empty_sum_is_an_error():
    with pytest.raises(CiphertextError, match="at least one batch"):
        Aggregator(COMPACT).result()
    with pytest.raises(CiphertextError, match="at least one batch"):
        Aggregator(COMPACT).sum([])


def test_sum_adds_to_what_was_added_before():
    aggregator = Aggregator(COMPACT)
    aggregator.add(DATA)
    total = decryptor("compact").decrypt(aggregator.sum([DATA, DATA]))
    assert aggregator.summands == 3
    # One ciphertext three times has three times its noise, not three independent noises.
    assert np.abs(total - 3 * VALUES).max() <= 3 * COMPACT.error_bound(1)


def test_aggregators_do_not_share_a_sum():
    first, second = Aggregator(COMPACT), Aggregator(COMPACT)
    first.add(DATA)
    first.add(DATA)
    second.add(DATA)
    total = decryptor("compact").decrypt(second.result())
    assert np.abs(total - VALUES).max() <= COMPACT.error_bound(1)


def test_values_and_fingerprint_given_at_the_start_bind_the_first_batch():
    with pytest.raises(CiphertextError, match=f"a batch of 7 values, got {N + 9}"):
        Aggregator(COMPACT, values=7).add(DATA)
    with pytest.raises(CiphertextError, match="a batch of 0 values"):
        Aggregator(COMPACT, values=0).add(DATA)
    with pytest.raises(KeyMismatchError, match="under the key " + "ab" * 16):
        Aggregator(COMPACT, fingerprint="ab" * 16).add(DATA)
    bound = Aggregator(COMPACT, values=N + 9, fingerprint=key("compact").fingerprint)
    bound.add(DATA)
    assert bound.summands == 1


def test_the_first_batch_binds_the_rest():
    aggregator = Aggregator(COMPACT)
    aggregator.add(DATA)
    with pytest.raises(CiphertextError, match=f"a batch of {N + 9} values, got {N + 8}"):
        aggregator.add(encryptor("compact").encrypt(VALUES[:-1]))
    with pytest.raises(KeyMismatchError):
        aggregator.add(Encryptor(generate_key(COMPACT)).encrypt(VALUES))


def test_a_refused_batch_leaves_the_sum_as_it_was():
    aggregator = Aggregator(COMPACT)
    refused = [
        DATA[:-1],
        b"",
        bytes(len(DATA)),
        encryptor("compact").encrypt(VALUES[:5]),
        encryptor("balanced").encrypt(VALUES),
        Encryptor(generate_key(COMPACT)).encrypt(VALUES),
    ]
    for data in refused[:3]:
        with pytest.raises(CryptoError):
            aggregator.add(data)
    assert aggregator.summands == 0
    aggregator.add(DATA)
    before = aggregator.result()
    for data in refused:
        with pytest.raises(CryptoError):
            aggregator.add(data)
    assert aggregator.result() == before
    assert aggregator.summands == 1


def test_a_refused_first_batch_binds_nothing():
    aggregator = Aggregator(COMPACT)
    with pytest.raises(CiphertextError):
        aggregator.add(DATA[:-1])
    aggregator.add(encryptor("compact").encrypt(VALUES[:5]))
    assert aggregator.summands == 1
