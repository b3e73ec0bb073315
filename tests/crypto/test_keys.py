import base64
import contextlib
import copy
import json
import os
import pickle
import stat
import traceback

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsens.crypto import MAP_PARAMETERS, Decryptor, Encryptor, SecretKey, generate_key
from fedsens.errors import CryptoError, FedSensError, KeyFileError, KeyMismatchError

from .kit import N, parameters

COMPACT = parameters("compact")
KEY = generate_key(COMPACT, MAP_PARAMETERS)
DATA = KEY.to_bytes()


def secrets_of(key):
    """Every form in which secret bytes might show (base64, hexadecimal, repr), in pieces."""
    for secret in key._secrets.values():
        for text in (base64.b64encode(secret).decode(), secret.hex(), repr(secret)):
            yield from (text[low : low + 24] for low in range(32, len(text) - 24, 24))


def assert_no_secret_in(text, key=KEY):
    assert not any(secret in text for secret in secrets_of(key))


@pytest.mark.parametrize("show", [SecretKey.to_bytes, lambda key: key._secrets])
def test_the_search_for_secrets_would_find_one(show):
    with pytest.raises(AssertionError):
        assert_no_secret_in(f"text {show(KEY)}")


def test_save_and_load_are_a_round_trip_with_every_parameter_set(tmp_path):
    KEY.save(tmp_path / "key.json")
    back = SecretKey.load(str(tmp_path / "key.json"))
    assert back == KEY
    assert hash(back) == hash(KEY)
    assert back.parameters == COMPACT
    blob = Encryptor(KEY.using(MAP_PARAMETERS)).encrypt(np.ones(5))
    opened = Decryptor(back.using(MAP_PARAMETERS)).decrypt(blob)
    assert np.abs(opened - 1).max() <= MAP_PARAMETERS.error_bound()


def test_bytes_remember_which_set_is_in_use():
    assert SecretKey.from_bytes(KEY.using(MAP_PARAMETERS).to_bytes()).parameters == MAP_PARAMETERS


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
def test_a_saved_key_is_its_owners_alone_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        KEY.save(tmp_path / "key.json")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key.json").stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["key.json"]


def test_an_existing_file_is_never_overwritten(tmp_path):
    path = tmp_path / "key.json"
    path.write_text("precious")
    with pytest.raises(KeyFileError, match="does not exist") as caught:
        KEY.save(path)
    assert path.read_text() == "precious"
    assert os.listdir(tmp_path) == ["key.json"]
    assert_no_secret_in("".join(traceback.format_exception(caught.value)))


def test_a_missing_folder_and_a_missing_file_are_key_file_errors(tmp_path):
    with pytest.raises(KeyFileError, match="No such file"):
        KEY.save(tmp_path / "nowhere" / "key.json")
    with pytest.raises(KeyFileError, match="No such file"):
        SecretKey.load(tmp_path / "key.json")
    with pytest.raises(KeyFileError, match="directory"):
        SecretKey.load(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
@pytest.mark.parametrize("mode", [0o604, 0o602, 0o601, 0o640, 0o620, 0o610, 0o644, 0o666])
def test_a_file_that_others_can_touch_is_not_trusted(tmp_path, mode):
    KEY.save(tmp_path / "key.json")
    (tmp_path / "key.json").chmod(mode)
    with pytest.raises(KeyFileError, match=f"got {mode:04o}.*chmod 600") as caught:
        SecretKey.load(tmp_path / "key.json")
    assert_no_secret_in("".join(traceback.format_exception(caught.value)))


@pytest.mark.parametrize("stop", [0, 1, 2, 50, 20_000, -2, -1])
def test_a_truncated_key_is_refused_without_showing_it(stop):
    with pytest.raises(KeyFileError, match="damaged") as caught:
        SecretKey.from_bytes(DATA[:stop])
    assert caught.value.__suppress_context__
    assert_no_secret_in("".join(traceback.format_exception(caught.value)))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 8 * len(DATA) - 1))
def test_a_flipped_bit_is_refused_or_meant_nothing(bit):
    damaged = bytearray(DATA)
    damaged[bit // 8] ^= 1 << bit % 8
    with contextlib.suppress(KeyFileError):
        assert SecretKey.from_bytes(bytes(damaged)) == KEY


@pytest.mark.parametrize(
    "change",
    [
        {"type": "fedsens public key"},
        {"version": 2},
        {"fingerprint": "00" * 16},
        {"fingerprint": None},
        {"keys": []},
        {"keys": 5},
        {"keys": [{"parameters": {}, "secret": "AAAA"}]},
        {"keys": [{"parameters": COMPACT.model_dump(), "secret": 5}]},
        {"keys": [{"parameters": COMPACT.model_dump(), "secret": "not base64!"}]},
    ],
)
def test_another_type_version_or_content_is_refused(change):
    with pytest.raises(KeyFileError):
        SecretKey.from_bytes(json.dumps(json.loads(DATA) | change).encode())


@settings(deadline=None)
@given(st.binary(max_size=80) | st.text().map(json.dumps).map(str.encode))
def test_arbitrary_bytes_are_not_a_key(data):
    with pytest.raises(KeyFileError):
        SecretKey.from_bytes(data)


def test_deeply_nested_json_is_not_a_key():
    with pytest.raises(KeyFileError):
        SecretKey.from_bytes(b"[" * 100_000)


def test_fingerprint_is_stable_short_and_of_this_key_only():
    assert KEY.fingerprint == SecretKey.from_bytes(DATA).fingerprint
    assert KEY.fingerprint == KEY.using(MAP_PARAMETERS).fingerprint
    assert len(bytes.fromhex(KEY.fingerprint)) == 16
    others = {generate_key(COMPACT).fingerprint for _ in range(4)}
    assert len(others | {KEY.fingerprint}) == 5


def test_each_parameter_set_has_its_own_secret():
    assert len(set(KEY._secrets.values())) == 2
    assert len(KEY._secrets) == 2


def test_using_a_set_that_the_key_was_not_made_for_is_refused():
    with pytest.raises(KeyMismatchError, match="name='balanced'") as caught:
        KEY.using(parameters("balanced"))
    assert_no_secret_in("".join(traceback.format_exception(caught.value)))


def test_keys_are_equal_by_content_and_set():
    assert SecretKey.from_bytes(DATA) == KEY
    assert KEY.using(MAP_PARAMETERS) != KEY
    assert generate_key(COMPACT) != KEY
    assert DATA != KEY


@pytest.mark.parametrize("show", [repr, str, "{!r:>1}".format, lambda key: f"{key}"])
def test_showing_a_key_shows_its_fingerprint_alone(show):
    assert KEY.fingerprint in show(KEY)
    assert_no_secret_in(show(KEY))


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, *(lambda k, p=p: pickle.dumps(k, p) for p in range(6))],
)
def test_a_key_is_neither_pickled_nor_copied(duplicate):
    with pytest.raises(TypeError, match="not picklable") as caught:
        duplicate(KEY)
    assert_no_secret_in("".join(traceback.format_exception(caught.value)))


def test_errors_of_the_codec_show_no_secret():
    blob = Encryptor(KEY).encrypt(np.ones(N))
    other = generate_key(COMPACT)
    attempts = [
        lambda: Decryptor(other).decrypt(blob),
        lambda: Decryptor(KEY).decrypt(blob[:-1]),
        lambda: Encryptor(KEY).encrypt(np.full(3, np.nan)),
        lambda: Encryptor(KEY, processes=0),
    ]
    for attempt in attempts:
        with pytest.raises(FedSensError) as caught:
            attempt()
        text = "".join(traceback.format_exception(caught.value)) + repr(caught.value.args)
        assert_no_secret_in(text)
        assert_no_secret_in(text, other)


def test_a_secret_opens_its_own_ciphertexts_alone():
    blob = Encryptor(KEY).encrypt(np.zeros(N))
    assert np.abs(Decryptor(KEY).decrypt(blob)).max() <= COMPACT.error_bound()
    forged = Decryptor(generate_key(COMPACT))
    forged._fingerprint = KEY.fingerprint
    with pytest.raises(CryptoError, match="outside"):
        forged.decrypt(blob)


def test_a_key_for_parameters_serves_maps_too():
    assert generate_key(COMPACT).using(MAP_PARAMETERS).parameters == MAP_PARAMETERS
    assert generate_key(MAP_PARAMETERS).parameters == MAP_PARAMETERS


@pytest.mark.parametrize("in_memory", [True, False])
def test_the_file_that_held_a_key_is_overwritten(in_memory, monkeypatch):
    """On the disk too, where the system has no anonymous files."""
    if not in_memory:
        monkeypatch.delattr(os, "memfd_create")
    left, close = [], os.close

    def look(descriptor):
        if os.fstat(descriptor).st_size > 1000:
            left.append(os.pread(descriptor, 10**6, 0))
        close(descriptor)

    monkeypatch.setattr("fedsens.crypto.seal.os.close", look)
    key = generate_key(COMPACT)
    key.seal_key()
    assert len(left) == 3
    assert not any(map(any, left))
