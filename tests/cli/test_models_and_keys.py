"""What an operator does with keys, identities and rosters on the command line."""

from __future__ import annotations

import json
import os

import pytest
from typer.testing import CliRunner

from fedsens.cli import app
from fedsens.keys import FederationKey, read_roster, roster_fingerprint

runner = CliRunner()
PASSPHRASE = "correct horse battery staple"


def run(*arguments, ok=True, **options):
    result = runner.invoke(app, [str(each) for each in arguments], **options)
    assert (result.exit_code == 0) == ok, result.output
    assert "Traceback" not in result.output
    return result.output


@pytest.fixture
def passphrase(tmp_path):
    path = tmp_path / "passphrase"
    path.touch(mode=0o600)
    path.write_text(PASSPHRASE + "\n")
    return path


def test_keygen_writes_one_file_and_prints_its_fingerprint(tmp_path):
    output = run("keygen", tmp_path / "a.key")
    assert [path.name for path in tmp_path.iterdir()] == ["a.key"]
    assert f"fingerprint {FederationKey.load(tmp_path / 'a.key').fingerprint}" in output
    assert json.loads((tmp_path / "a.key").read_text())["key"] not in output


def test_keygen_asks_twice_for_a_passphrase_and_shows_none(tmp_path):
    output = run("keygen", tmp_path / "a.key", "--passphrase", input=f"{PASSPHRASE}\n" * 2)
    assert PASSPHRASE not in output
    assert "locked, mode 0600" in output
    assert FederationKey.load(tmp_path / "a.key", lambda: PASSPHRASE).fingerprint in output


def test_keygen_takes_a_passphrase_from_a_file_or_the_environment(tmp_path, passphrase):
    run("keygen", tmp_path / "a.key", "--passphrase-file", passphrase)
    run("keygen", tmp_path / "b.key", env={"FEDSENS_PASSPHRASE_FILE": str(passphrase)})
    for name in ("a", "b"):
        assert FederationKey.load(tmp_path / f"{name}.key", lambda: PASSPHRASE)


def test_keygen_never_replaces_a_key(tmp_path):
    run("keygen", tmp_path / "a.key")
    before = (tmp_path / "a.key").read_bytes()
    assert "expected new files" in run("keygen", tmp_path / "a.key", ok=False)
    assert (tmp_path / "a.key").read_bytes() == before


def test_identities_make_a_roster(tmp_path):
    public = [run("identity", tmp_path / f"identity-{n}").strip() for n in range(2)]
    assert run("identity", tmp_path / "identity-0").strip() == public[0]
    assert (tmp_path / "identity-0").stat().st_mode & 0o777 == 0o600
    output = run("roster", tmp_path / "roster.json", *public, public[0].upper())
    fingerprint = roster_fingerprint(map(bytes.fromhex, public))
    assert f"2 clients, fingerprint {fingerprint}" in output
    assert sorted(public) == json.loads((tmp_path / "roster.json").read_text())
    assert "expected new files" in run("roster", tmp_path / "roster.json", public[0], ok=False)
    assert "RosterError" in run("roster", tmp_path / "other", "ab", ok=False)


@pytest.mark.parametrize("umask", [0, 0o002, 0o077])
def test_a_written_roster_can_be_read_back_whatever_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        run("roster", tmp_path / "roster.json", "ab" * 32)
    finally:
        os.umask(before)
    assert read_roster(tmp_path / "roster.json") == [bytes.fromhex("ab" * 32)]
