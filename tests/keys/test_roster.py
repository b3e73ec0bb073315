"""Identities and rosters as files: what is written can be read, and nothing else."""

import json

import pytest

from fedsens.errors import KeyFileError, RosterError
from fedsens.keys import load_identity, read_roster, roster_fingerprint, write_roster

PUBLIC = [bytes([n]) * 32 for n in (3, 1, 2)]


def test_a_written_roster_lists_each_key_once_in_any_case_and_order(tmp_path):
    given = [f" {key.hex().upper()}\n" for key in (*PUBLIC, PUBLIC[0])]
    written = write_roster(tmp_path / "roster", given)
    assert read_roster(tmp_path / "roster") == written == sorted(PUBLIC)
    assert roster_fingerprint(written) == roster_fingerprint(PUBLIC)


@pytest.mark.parametrize("key", ["", "00", "zz" * 32, "00" * 33])
def test_what_is_no_public_key_is_not_written(tmp_path, key):
    with pytest.raises(RosterError, match="64 hexadecimal digits"):
        write_roster(tmp_path / "roster", [PUBLIC[0].hex(), key])
    assert not (tmp_path / "roster").exists()


def test_a_roster_is_never_replaced(tmp_path):
    write_roster(tmp_path / "roster", [PUBLIC[0].hex()])
    with pytest.raises(RosterError, match="exists"):
        write_roster(tmp_path / "roster", [PUBLIC[1].hex()])
    assert read_roster(tmp_path / "roster") == PUBLIC[:1]


@pytest.mark.parametrize("content", [{}, [1], ["00"], "00" * 32, [None]])
def test_another_content_is_no_roster(tmp_path, content):
    path = tmp_path / "roster"
    path.write_text(json.dumps(content))
    with pytest.raises(RosterError, match="JSON list of hexadecimal public keys"):
        read_roster(path)


def test_an_identity_is_made_once_and_damage_is_named(tmp_path):
    path = tmp_path / "identity"
    made = load_identity(path).private_bytes_raw()
    assert load_identity(path).private_bytes_raw() == made == path.read_bytes()
    path.write_bytes(made[:-1])
    with pytest.raises(KeyFileError, match="identity of 32 bytes"):
        load_identity(path)
