"""Identities, rosters and envelopes: what is written can be read, by those it is for only."""

import json

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedsens.errors import EnvelopeError, KeyFileError, RosterError
from fedsens.keys import (
    load_identity,
    read_roster,
    roster_fingerprint,
    seal,
    unseal,
    write_roster,
)

SECRET = b"the shared secret of the federation"
RUN = "17"
SENDER, RECIPIENT, STRANGER = (
    X25519PrivateKey.from_private_bytes(bytes([n] * 32)) for n in (1, 2, 3)
)
LOW_ORDER = [bytes(32), bytes([1]) + bytes(31), bytes.fromhex("ec" + "ff" * 30 + "7f")]

ROSTER = [bytes([n]) * 32 for n in (3, 1, 2)]


def public(key):
    return key.public_key().public_bytes_raw()


@pytest.fixture(scope="module")
def envelope():
    return seal(SECRET, SENDER, public(RECIPIENT), RUN, 1)


def test_an_envelope_opens_for_its_recipient(envelope):
    assert unseal(envelope, RECIPIENT, public(SENDER), RUN, 1) == SECRET


@pytest.mark.parametrize("secret", [b"", b"x" * 100_000])
def test_a_secret_may_have_any_length(secret):
    sealed = seal(secret, SENDER, public(RECIPIENT), RUN, 1)
    assert unseal(sealed, RECIPIENT, public(SENDER), RUN, 1) == secret


def test_envelopes_show_nothing_and_are_never_alike(envelope):
    again = seal(SECRET, SENDER, public(RECIPIENT), RUN, 1)
    assert envelope[:32] != again[:32]
    assert envelope[32:] != again[32:]
    assert SECRET[:8] not in envelope


@pytest.mark.parametrize(
    ("recipient", "sender", "run"),
    [
        (STRANGER, SENDER, RUN),
        (SENDER, RECIPIENT, RUN),
        (RECIPIENT, STRANGER, RUN),
        (RECIPIENT, RECIPIENT, RUN),
        (RECIPIENT, SENDER, "18"),
        (RECIPIENT, SENDER, ""),
    ],
)
def test_it_does_not_open_for_another_party_or_run(envelope, recipient, sender, run):
    with pytest.raises(EnvelopeError, match="does not open"):
        unseal(envelope, recipient, public(sender), run, 1)


@pytest.mark.parametrize("key_index", [0, 2, 11])
def test_a06_an_old_key_cannot_be_delivered_as_a_new_one(envelope, key_index):
    with pytest.raises(EnvelopeError, match="this place among its keys"):
        unseal(envelope, RECIPIENT, public(SENDER), RUN, key_index)


def test_run_and_place_are_not_one_text(envelope):
    sealed = seal(SECRET, SENDER, public(RECIPIENT), "1", 17)
    with pytest.raises(EnvelopeError):
        unseal(sealed, RECIPIENT, public(SENDER), "11", 7)


def test_no_byte_can_be_changed(envelope):
    for index in range(len(envelope)):
        for bit in (1, 0x80):
            changed = bytearray(envelope)
            changed[index] ^= bit
            if index == 31 and bit == 0x80:
                continue  # X25519 ignores the last bit; see the next test
            with pytest.raises(EnvelopeError):
                unseal(bytes(changed), RECIPIENT, public(SENDER), RUN, 1)


def test_even_the_bit_that_x25519_ignores_is_bound(envelope):
    changed = bytearray(envelope)
    changed[31] ^= 0x80
    with pytest.raises(EnvelopeError):
        unseal(bytes(changed), RECIPIENT, public(SENDER), RUN, 1)


@pytest.mark.parametrize("length", [0, 1, 31, 32, 47, 48, -1])
def test_a_truncated_envelope_does_not_open(envelope, length):
    with pytest.raises(EnvelopeError):
        unseal(envelope[:length], RECIPIENT, public(SENDER), RUN, 1)


def test_a_longer_envelope_does_not_open(envelope):
    with pytest.raises(EnvelopeError):
        unseal(envelope + b"\0", RECIPIENT, public(SENDER), RUN, 1)


@pytest.mark.parametrize("point", [b"", bytes(31), bytes(33), *LOW_ORDER])
def test_points_that_are_no_keys_are_refused(envelope, point):
    with pytest.raises(EnvelopeError, match="public key of 32 bytes"):
        seal(SECRET, SENDER, point, RUN, 1)
    with pytest.raises(EnvelopeError):
        unseal(envelope, RECIPIENT, point, RUN, 1)
    with pytest.raises(EnvelopeError):
        unseal(point + envelope[32:], RECIPIENT, public(SENDER), RUN, 1)


def test_errors_quote_nothing_secret(envelope):
    with pytest.raises(EnvelopeError) as caught:
        unseal(envelope, STRANGER, public(SENDER), RUN, 1)
    for secret in (SECRET, STRANGER.private_bytes_raw(), envelope):
        assert secret.hex() not in str(caught.value)
        assert repr(secret) not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_written_roster_lists_each_key_once_in_any_case_and_order(tmp_path):
    given = [f" {key.hex().upper()}\n" for key in (*ROSTER, ROSTER[0])]
    written = write_roster(tmp_path / "roster", given)
    assert read_roster(tmp_path / "roster") == written == sorted(ROSTER)
    assert roster_fingerprint(written) == roster_fingerprint(ROSTER)


@pytest.mark.parametrize("key", ["", "00", "zz" * 32, "00" * 33])
def test_what_is_no_public_key_is_not_written(tmp_path, key):
    with pytest.raises(RosterError, match="64 hexadecimal digits"):
        write_roster(tmp_path / "roster", [ROSTER[0].hex(), key])
    assert not (tmp_path / "roster").exists()


def test_a_roster_is_never_replaced(tmp_path):
    write_roster(tmp_path / "roster", [ROSTER[0].hex()])
    with pytest.raises(RosterError, match="exists"):
        write_roster(tmp_path / "roster", [ROSTER[1].hex()])
    assert read_roster(tmp_path / "roster") == ROSTER[:1]


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
