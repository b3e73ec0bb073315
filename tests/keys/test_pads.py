"""Key answers: the sum over exactly the list opens, and no other one; and the streams of pads."""

from itertools import combinations

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsens.errors import ProtocolError
from fedsens.keys import key_answer
from fedsens.keys._pads import (
    COEFFICIENTS,
    put_pads_on,
    residues_below,
    stream,
    take_off_pads,
    uint16s,
)
from fedsens.protocol import KEY_BYTES, Party, sum_answers

from .uploads import KEY, OTHER_KEY, sender

DIGEST, OTHER_DIGEST = b"S" * 32, b"T" * 32
ZERO = np.zeros(COEFFICIENTS, np.int64)


def secret_of(number, most=21):
    return np.random.default_rng(number).integers(-most, most + 1, COEFFICIENTS)


def answer_of(number, listed, digest=DIGEST, key=KEY, secret=None):
    others = [sender(each).party for each in listed if each != number]
    chosen = secret_of(number) if secret is None else secret
    return key_answer(chosen, sender(number).identities, others, key, digest)


def taken_off(total, listed, digest=DIGEST, key=KEY):
    names = [bytes.fromhex(sender(each).name) for each in listed]
    return take_off_pads(total, key, digest, names)


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 8), st.randoms(use_true_random=False))
def test_the_sum_over_the_list_is_the_sum_of_the_secrets(clients, random):
    listed = list(range(clients))
    answers = [answer_of(number, listed) for number in listed]
    random.shuffle(answers)
    random.shuffle(listed)
    total = taken_off(sum_answers(answers), listed)
    assert total.tolist() == sum(map(secret_of, listed)).tolist()


@pytest.mark.parametrize("sign", [1, -1])
def test_sums_of_up_to_two_to_the_fifteen_come_back(sign):
    full = np.full(COEFFICIENTS, sign * 32_767)
    assert taken_off(answer_of(0, [0], secret=full), [0]).tolist() == full.tolist()


def telling(total, listed):
    """Whether a sum of answers tells the sum of these clients' secrets, in part at least."""
    return np.mean(taken_off(total, listed) == sum(map(secret_of, listed), ZERO)) > 0.01


def test_no_other_sum_opens():
    listed = range(4)
    answers = [answer_of(number, listed) for number in listed]
    assert telling(sum_answers(answers), listed)
    for size in (1, 2, 3):
        for subset in combinations(listed, size):
            total = sum_answers(answers[number] for number in subset)
            assert not telling(total, subset), subset
            assert not telling(total, listed), subset
    for doubled in listed:
        assert not telling(sum_answers([*answers, answers[doubled]]), [*listed, doubled])


def test_answers_to_two_lists_do_not_cancel():
    """The difference of two sums would be one client's secret."""
    whole, part = (0, 1, 2), (0, 1)
    mixed = [answer_of(0, part, OTHER_DIGEST), answer_of(1, whole), answer_of(2, whole)]
    assert not telling(sum_answers(mixed), whole)
    same_list_in_another_context = [answer_of(0, whole, OTHER_DIGEST)] + [
        answer_of(number, whole) for number in (1, 2)
    ]
    assert not telling(sum_answers(same_list_in_another_context), whole)
    # One that is told a shorter list under the same digest, as no client computes it.
    shorter = [answer_of(0, part), answer_of(1, whole), answer_of(2, whole)]
    assert not telling(sum_answers(shorter), whole)


def test_the_sum_is_padded_for_who_lacks_the_key():
    listed = (0, 1, 2)
    total = sum_answers(answer_of(number, listed) for number in listed)
    for key, digest in ((OTHER_KEY, DIGEST), (KEY, OTHER_DIGEST)):
        names = [bytes.fromhex(sender(each).name) for each in listed]
        found = take_off_pads(total, key, digest, names)
        assert np.mean(found == sum(map(secret_of, listed))) < 0.01


def test_an_answer_looks_uniform_and_says_nothing_of_its_secret():
    one = np.frombuffer(answer_of(0, (0, 1)), "<u2").astype(float)
    assert abs(one.mean() - 32_767.5) < 5 * 65_536 / np.sqrt(12 * one.size)
    zero, full = (np.frombuffer(answer_of(0, (0, 1), secret=s), "<u2") for s in (ZERO, ZERO + 21))
    assert ((full - zero) == 21).all()  # the pads are the same; only the sum may be shown


def test_the_same_question_gets_the_same_answer():
    assert answer_of(0, (0, 1, 2)) == answer_of(0, (2, 1, 0)) == answer_of(0, (1, 2))
    assert len(answer_of(0, (0, 1))) == KEY_BYTES


def words(seed):
    cipher = Cipher(ChaCha20(seed, bytes(16)), mode=None).encryptor()
    return np.frombuffer(cipher.update(bytes(KEY_BYTES)), "<u2").astype(np.int64)


def test_an_answer_is_what_the_definition_says():
    """y_i = s_i + sum of sign(i, j) PRG(k_ij) + PRG(K, i), added by the one of the lesser name."""
    listed = (0, 1, 2, 3)
    for number in listed:
        mine = sender(number)
        own = bytes.fromhex(mine.name)
        total = secret_of(number) + words(KEY.derive(b"key pad" + DIGEST + own))
        for other in listed:
            if other == number:
                continue
            party = sender(other).party
            shared = mine.of_run.exchange(
                X25519PublicKey.from_public_bytes(bytes.fromhex(party.run_key))
            ) + mine.lasting.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(party.name)))
            seed = HKDF(SHA256(), 32, None, b"fedsens pair pad 3" + DIGEST).derive(shared)
            total += (1 if own < bytes.fromhex(party.name) else -1) * words(seed)
        found = np.frombuffer(answer_of(number, listed), "<u2")
        assert found.tolist() == (total % 2**16).tolist()


@pytest.mark.parametrize("half", ["lasting", "of_run"])
def test_both_identities_are_needed_for_a_pairs_pad(half):
    """Who holds one half of a client's two private keys cannot take its pads off."""
    stranger = X25519PrivateKey.from_private_bytes(b"stranger".ljust(32, b"."))
    one, two = sender(0), sender(1)
    identities = (stranger, one.of_run) if half == "lasting" else (one.lasting, stranger)
    genuine = answer_of(0, (0, 1), secret=ZERO)
    guessed = key_answer(ZERO, identities, [two.party], KEY, DIGEST)
    right = take_off_pads(genuine, KEY, DIGEST, [bytes.fromhex(one.name)])
    own = identities[0].public_key().public_bytes_raw()
    wrong = take_off_pads(guessed, KEY, DIGEST, [own])
    for sign in (1, -1):
        assert np.mean(right == sign * wrong) < 0.01


@given(st.integers(0, 2**32 - 1), st.lists(st.binary(min_size=1, max_size=40), max_size=5))
@settings(deadline=None, max_examples=20)
def test_pads_that_are_put_on_come_off(seed, names):
    secret = np.random.default_rng(seed).integers(-(2**15), 2**15, COEFFICIENTS)
    padded = put_pads_on(secret, KEY, DIGEST, names)
    assert take_off_pads(padded, KEY, DIGEST, names).tolist() == secret.tolist()
    assert take_off_pads(padded, KEY, DIGEST, reversed(names)).tolist() == secret.tolist()


LOW_ORDER = [  # points with which anybody knows the result of an exchange
    bytes(32),
    bytes([1]) + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    bytes.fromhex("ec" + "ff" * 30 + "7f"),
    bytes.fromhex("ed" + "ff" * 30 + "7f"),
    bytes.fromhex("ee" + "ff" * 30 + "7f"),
]


@pytest.mark.parametrize("point", LOW_ORDER, ids=lambda point: point.hex()[:8])
@pytest.mark.parametrize("field", ["name", "run_key"])
def test_public_keys_of_low_order_are_refused(point, field):
    other = Party(**{**sender(1).party.model_dump(), field: point.hex()})
    with pytest.raises(ProtocolError, match="expected usable public keys of the contributor"):
        key_answer(ZERO, sender(0).identities, [sender(2).party, other], KEY, DIGEST)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 2**54 + 24577), st.integers(0, 300), st.binary(min_size=32, max_size=32))
def test_residues_of_a_stream_are_below_the_modulus_and_the_same_again(modulus, count, seed):
    found = residues_below(stream(seed), count, modulus)
    assert len(found) == count
    assert int(found.max(initial=0)) < modulus
    assert found.tolist() == residues_below(stream(seed), count, modulus).tolist()


@pytest.mark.parametrize("modulus", [3, 5, 2**16 - 15])
def test_residues_of_a_stream_are_uniform(modulus):
    count = 60_000
    found = residues_below(stream(bytes(32)), count, modulus)
    bins = np.bincount((found * np.uint64(3) // np.uint64(modulus)).astype(int), minlength=3)
    share = [
        sum(1 for x in range(modulus) if 3 * x // modulus == third) / modulus for third in range(3)
    ]
    for seen, expected in zip(bins / count, share, strict=True):
        assert abs(seen - expected) < 5 * np.sqrt(expected * (1 - expected) / count)


def test_another_seed_is_another_stream_and_a_longer_one_begins_alike():
    first, second = uint16s(bytes(32), 4096), uint16s(bytes(31) + b"1", 4096)
    assert first.max() > 2**15 > first.min()
    assert np.mean(first == second) < 0.01
    assert uint16s(bytes(32), 5000)[:4096].tolist() == first.tolist()
