"""What is refused after a sum was opened, and how its values come out."""

import numpy as np
import pytest

from fedsens.crypto import Aggregator, Decryptor
from fedsens.crypto._wire import CHUNK
from fedsens.errors import ConfigurationError, ValueRangeError

from .ring import CONTEXT, NAMES, N, decrypt, encrypt, parameters, round_trip, sum_of, to_range


@pytest.mark.parametrize("times", [1.05, 2.0, 3.7, 10.0, 100.0])
@pytest.mark.parametrize("kind", ["random", "constant", "spike"])
@pytest.mark.parametrize("name", NAMES)
def test_a_sum_beyond_the_range_is_refused_never_returned(name, kind, times):
    values = {
        "random": np.random.default_rng(0).normal(size=2 * N),
        "constant": np.ones(2 * N),
        "spike": np.eye(1, 2 * N)[0],
    }[kind]
    values[: N // 2] *= -1.0
    values *= parameters(name).value_range * np.sqrt(N) / np.linalg.norm(values[:N])
    clients = int(np.ceil(times * 1.03))
    values[N:] = 0.0  # one good block must not hide a bad one
    blob, secret = encrypt(name, values * times / clients)
    total = Aggregator(parameters(name)).sum([blob] * clients)
    with pytest.raises(ValueRangeError, match="the summed values left the range"):
        decrypt(name, total, sum_of([secret] * clients))


@pytest.mark.parametrize("bad", [0, CHUNK - 1, CHUNK, 2 * CHUNK])
def test_a_bad_block_anywhere_is_refused_in_the_same_words(bad):
    """The text tells nothing of which or how many: it must not be an oracle."""
    values = np.zeros((2 * CHUNK + 1, N))
    values[bad] = 3.9
    blob, secret = encrypt("precise", values.reshape(-1))
    total = Aggregator(parameters("precise")).sum([blob, blob])
    with pytest.raises(ValueRangeError) as caught:
        decrypt("precise", total, secret + secret)
    with pytest.raises(ValueRangeError) as other:
        Decryptor(parameters("precise"), b"another").decrypt(blob, secret)
    assert str(caught.value) == str(other.value)
    assert not any(digit.isdigit() for digit in str(caught.value).replace("within 4,", "")[:120])


def test_a_sum_at_the_very_edge_of_the_range_is_read():
    edge = to_range(np.random.default_rng(0).normal(size=N), 4.0)
    total = round_trip("compact", [edge / 4.0001] * 4)
    assert np.abs(total - edge * 4 / 4.0001).max() <= parameters("compact").error_bound(4)


@pytest.mark.parametrize("kind", [np.float32, "float64", ">f4"])
def test_values_come_in_the_type_that_was_asked_for(kind):
    values = np.random.default_rng(0).normal(size=(CHUNK + 1) * N + 5) * 0.1
    blob, secret = encrypt("precise", values)
    wide = decrypt("precise", blob, secret)
    opened = Decryptor(parameters("precise"), CONTEXT).decrypt(blob, secret, kind)
    assert opened.dtype == np.dtype(kind)
    assert (opened == wide.astype(kind)).all()


def test_decrypting_changes_neither_the_sum_nor_the_secret():
    blob, secret = encrypt("precise", np.ones(5))
    numbers = secret.to_array()
    decryptor = Decryptor(parameters("precise"), CONTEXT)
    first, again = (decryptor.decrypt(blob, secret) for _ in range(2))
    assert (first == again).all()
    assert (secret.to_array() == numbers).all()


def test_a_context_is_bytes():
    with pytest.raises(ConfigurationError, match="expected the context as bytes, got int"):
        Decryptor(parameters("compact"), 7)
