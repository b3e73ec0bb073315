"""Key files with a passphrase."""

from __future__ import annotations

import base64
import json
import stat
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsens.errors import KeyFileError
from fedsens.keys import (
    ClientSettings,
    FederationKey,
    KeyStore,
    locked_key_in,
    read_passphrase,
)
from fedsens.keys._file import LockedKey, ScryptCost

KEY = FederationKey.generate()
PASSPHRASE = "correct horse battery staple"


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    path = tmp_path_factory.mktemp("locked") / "federation.key"
    KEY.save(path, PASSPHRASE)
    return path


def test_a_locked_key_comes_back_with_its_passphrase(locked):
    assert FederationKey.load(locked, lambda: PASSPHRASE) == KEY
    assert stat.S_IMODE(locked.stat().st_mode) == 0o600


def test_an_open_key_needs_no_passphrase(tmp_path):
    KEY.save(tmp_path / "k")
    assert FederationKey.load(tmp_path / "k") == KEY == FederationKey.load(tmp_path / "k")


def test_composed_and_decomposed_letters_are_one_passphrase(tmp_path):
    KEY.save(tmp_path / "k", "Schlüssel")
    assert FederationKey.load(tmp_path / "k", lambda: "Schlu\u0308ssel") == KEY


@pytest.mark.parametrize("wrong", ["", "x", PASSPHRASE + "\n", PASSPHRASE.upper()])
def test_a_wrong_passphrase_tells_nothing_else(locked, wrong):
    with pytest.raises(KeyFileError) as caught:
        FederationKey.load(locked, lambda: wrong)
    assert str(caught.value) == (
        "expected the passphrase that locked this key, got another, or a damaged file"
    )
    assert caught.value.__cause__ is None


def test_without_a_passphrase_the_error_says_what_to_set(locked):
    with pytest.raises(KeyFileError, match="set fedsens-passphrase-file"):
        FederationKey.load(locked)
    with pytest.raises(KeyFileError):
        FederationKey.load(locked)


def test_an_empty_passphrase_locks_nothing(tmp_path):
    with pytest.raises(KeyFileError, match="expected a passphrase"):
        KEY.save(tmp_path / "k", "")
    assert not (tmp_path / "k").exists()


def test_nothing_of_the_secret_is_in_the_file(locked):
    content = locked.read_text()
    assert base64.b64encode(KEY._secret).decode()[4:40] not in content
    assert KEY.fingerprint in content


def test_every_lock_has_its_own_salt(locked, tmp_path):
    KEY.save(tmp_path / "k", PASSPHRASE)
    one, other = (json.loads(path.read_text()) for path in (locked, tmp_path / "k"))
    assert one["scrypt"]["salt"] != other["scrypt"]["salt"]
    assert one["sealed"] != other["sealed"]


HOSTILE = {
    "memory": {"n": 2**20, "r": 32},
    "gigabytes": {"n": 2**30},
    "time": {"p": 1000},
    "zero": {"n": 0},
    "no power of two": {"n": 3},
    "text": {"n": "many"},
    "salt": {"salt": "ab"},
    "more": {"x": 1},
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_costs_nothing(locked, tmp_path, change):
    content = json.loads(locked.read_text())
    content["scrypt"] |= change
    (tmp_path / "k").touch(mode=0o600)
    (tmp_path / "k").write_text(json.dumps(content))

    def ask():
        pytest.fail("asked for a passphrase of a file that is out of bounds")

    with pytest.raises(KeyFileError, match="wrong scrypt"):
        FederationKey.load(tmp_path / "k", ask)


def test_the_costs_are_those_recommended():
    cost = ScryptCost(salt="00" * 16)
    assert (cost.n, cost.r, cost.p) == (2**17, 8, 1)  # OWASP's first choice, 128 MiB


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_flipped_byte_is_a_named_error(locked, data):
    content = bytearray(locked.read_bytes())
    index = data.draw(st.integers(0, len(content) - 1))
    content[index] ^= data.draw(st.integers(1, 255))
    try:
        again = locked_key_in(bytes(content))
        key = (
            FederationKey.from_bytes(bytes(content))
            if again is None
            else FederationKey.from_bytes(again.unlock(PASSPHRASE))
        )
    except KeyFileError:
        return
    assert key == KEY  # such as a space that became a tab


@pytest.mark.parametrize("cost", [{"r": 1}, {"r": 1, "n": 2**16}, {"r": 1, "n": 2**20}, {"n": 3}])
def test_costs_that_scrypt_does_not_know_are_refused(locked, cost):
    content = json.loads(locked.read_text())
    content["scrypt"] |= cost
    with pytest.raises(KeyFileError, match="wrong scrypt"):
        locked_key_in(json.dumps(content).encode())
    known = content["scrypt"] | {"r": 1, "n": 2**15}
    assert locked_key_in(json.dumps(content | {"scrypt": known}).encode())


def test_too_little_memory_for_scrypt_is_a_named_error(locked):
    code = f"""
import resource
from pathlib import Path
from fedsens.errors import KeyFileError
from fedsens.keys._file import locked_key_in
found = locked_key_in(Path({str(locked)!r}).read_bytes())
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 2**26
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    found.unlock("x")
except KeyFileError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("expected 128 MiB of free memory to open a locked key"), done


def test_the_fingerprint_that_can_be_read_is_authenticated(locked):
    content = json.loads(locked.read_text())
    content["fingerprint"] = "ab" * 16
    with pytest.raises(KeyFileError, match="expected the passphrase"):
        LockedKey.model_validate(content).unlock(PASSPHRASE)


def test_a_client_reads_the_passphrase_from_its_file(locked, tmp_path):
    secret = tmp_path / "passphrase"
    secret.touch(mode=0o600)
    secret.write_text(PASSPHRASE + "\n")
    own = {"fedsens-key-file": str(locked), "fedsens-state-dir": str(tmp_path)}
    own |= {"fedsens-min-ratio": "1"}
    with pytest.raises(KeyFileError, match="set fedsens-passphrase-file"):
        _ = KeyStore(ClientSettings.from_node(own, {}), 1, 2).key
    settings = ClientSettings.from_node(own, {"FEDSENS_PASSPHRASE_FILE": str(secret)})
    assert KeyStore(settings, 1, 2).key == KEY


@pytest.mark.parametrize(("text", "expected"), [("a b \r\n", "a b "), ("a\n\n", "a\n"), ("ä", "ä")])
def test_one_line_break_is_no_part_of_a_passphrase(tmp_path, text, expected):
    path = tmp_path / "p"
    path.touch(mode=0o600)
    path.write_bytes(text.encode())
    assert read_passphrase(path) == expected


def test_a_passphrase_that_others_can_read_is_refused(tmp_path):
    (tmp_path / "p").write_text("x")
    (tmp_path / "p").chmod(0o644)
    with pytest.raises(KeyFileError, match="0600"):
        read_passphrase(tmp_path / "p")
    (tmp_path / "p").chmod(0o600)
    (tmp_path / "p").write_bytes(b"\xff")
    with pytest.raises(KeyFileError, match="UTF-8"):
        read_passphrase(tmp_path / "p")
