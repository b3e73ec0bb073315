"""K: 32 bytes that show nothing of themselves."""

from __future__ import annotations

import base64
import contextlib
import copy
import hashlib
import hmac
import json
import pickle
import traceback

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsens.errors import KeyFileError
from fedsens.keys import FederationKey

SECRET = bytes(range(100, 132))
KEY = FederationKey(SECRET)
DATA = KEY.to_bytes()


def assert_no_secret_in(text):
    for form in (base64.b64encode(SECRET).decode(), SECRET.hex(), repr(SECRET)[2:-1]):
        assert not any(form[low : low + 12] in text for low in range(len(form) - 12))


@pytest.mark.parametrize("shown", [DATA.decode(), repr(SECRET), SECRET.hex()])
def test_the_search_for_secrets_would_find_one(shown):
    with pytest.raises(AssertionError):
        assert_no_secret_in(f"text {shown}")


def test_keys_are_random():
    keys = [FederationKey.generate() for _ in range(50)]
    assert len(set(keys)) == len({key.fingerprint for key in keys}) == 50
    assert all(len(key.derive(b"")) == len(key._secret) == 32 for key in keys)


def test_save_and_load_are_a_round_trip(tmp_path):
    KEY.save(tmp_path / "k")
    back = FederationKey.load(str(tmp_path / "k"))
    assert back == KEY
    assert hash(back) == hash(KEY)
    assert back.fingerprint == KEY.fingerprint
    assert json.loads((tmp_path / "k").read_text())["version"] == 3


def test_equality_is_that_of_the_secrets():
    assert FederationKey.from_bytes(DATA) == KEY
    assert FederationKey.generate() != KEY
    assert KEY != SECRET


def hkdf(secret, label, length):
    """RFC 5869, from its text."""
    root = hmac.digest(b"fedsens 3", secret, "sha256")
    block, blocks = b"", b""
    for counter in range(1, -(-length // 32) + 1):
        block = hmac.digest(root, block + label + bytes([counter]), "sha256")
        blocks += block
    return blocks[:length]


@given(st.binary(max_size=80), st.sampled_from([1, 31, 32, 33, 64, 500, 8160]))
def test_derived_secrets_are_those_of_the_standard(label, length):
    assert KEY.derive(label, length) == hkdf(SECRET, label, length)


def test_derived_secrets_differ_by_label_and_by_key():
    labels = [b"", b"\0", b"pad", b"pad\0", b"h", b"b"]
    other = FederationKey.generate()
    derived = {key.derive(label) for key in (KEY, other) for label in labels}
    assert len(derived) == 2 * len(labels)


def test_the_fingerprint_is_stable_and_no_derived_secret():
    digest = hashlib.sha256(b"fedsens 3 key fingerprint" + SECRET).hexdigest()
    assert KEY.fingerprint == digest[:32]


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
def test_a_secret_has_32_bytes(length):
    with pytest.raises(KeyFileError, match=f"32 bytes, got {length}"):
        FederationKey(bytes(length))


def test_a_key_shows_nothing_and_is_not_pickled_or_copied():
    for text in (repr(KEY), str(KEY), f"{KEY}", repr([KEY])):
        assert KEY.fingerprint in text
        assert_no_secret_in(text)
    for transport in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not picklable"):
            transport(KEY)


OLD = {
    "open": {"type": "fedsens secret key", "version": 1, "keys": []},
    "locked": {"type": "fedsens locked key", "version": 1, "public": {}, "sealed": ""},
}


@pytest.mark.parametrize("content", OLD.values(), ids=OLD)
def test_keys_of_an_older_fedsens_are_refused_by_name(tmp_path, content):
    path = tmp_path / "k"
    path.touch(mode=0o600)
    path.write_text(json.dumps(content))
    with pytest.raises(KeyFileError, match="made by an older fedsens; make a new key with fedsens"):
        FederationKey.load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"type": "fedsens public key"},
        {"type": []},
        {"type": {}},
        {"version": 2},
        {"version": 4},
        {"version": [3]},
        {"fingerprint": "00" * 16},
        {"fingerprint": None},
        {"key": base64.b64encode(SECRET[:-1]).decode()},
        {"key": base64.b64encode(SECRET + b"\0").decode()},
        {"key": base64.b64encode(bytes(32)).decode()},
        {"key": "ä" * 44},
        {"key": None},
        {"key": 5},
        {"key": [SECRET.hex()]},
    ],
)
def test_changed_files_are_refused_without_showing_the_key(change):
    with pytest.raises(KeyFileError) as caught:
        FederationKey.from_bytes(json.dumps(json.loads(DATA) | change).encode())
    assert_no_secret_in("".join(traceback.format_exception(caught.value)))


@pytest.mark.parametrize("name", ["type", "version", "fingerprint", "key"])
def test_every_field_is_needed(name):
    content = {key: value for key, value in json.loads(DATA).items() if key != name}
    with pytest.raises(KeyFileError):
        FederationKey.from_bytes(json.dumps(content).encode())


@pytest.mark.parametrize("data", [b"", b"\xff", b"[" * 100_000, b"[]", b"null", b"5", b'"k"'])
def test_other_bytes_are_a_named_error(data):
    with pytest.raises(KeyFileError, match="damaged bytes"):
        FederationKey.from_bytes(data)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 8 * len(DATA) - 1))
def test_a_flipped_bit_is_refused_or_meant_nothing(bit):
    damaged = bytearray(DATA)
    damaged[bit // 8] ^= 1 << bit % 8
    with contextlib.suppress(KeyFileError):
        assert FederationKey.from_bytes(bytes(damaged)) == KEY


@given(st.integers(0, len(DATA) - 1))
def test_a_truncated_key_is_refused_without_showing_it(stop):
    with pytest.raises(KeyFileError, match="damaged") as caught:
        FederationKey.from_bytes(DATA[:stop])
    assert caught.value.__cause__ is None
    assert_no_secret_in("".join(traceback.format_exception(caught.value)))


def test_an_existing_file_is_never_overwritten(tmp_path):
    KEY.save(tmp_path / "k")
    with pytest.raises(KeyFileError, match="does not exist") as caught:
        FederationKey.generate().save(tmp_path / "k")
    assert FederationKey.load(tmp_path / "k") == KEY
    assert_no_secret_in("".join(traceback.format_exception(caught.value)))
