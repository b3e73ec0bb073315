import json
import os
import stat

import pytest

from fedsens.errors import KeyFileError, KeyMismatchError, RosterError
from fedsens.keys import ClientSettings, FederationKey, KeyStore

KEY, OTHER = FederationKey.generate(), FederationKey.generate()
PUBLIC = [bytes([n]) * 32 for n in range(3)]


def store(folder, node=5, run=7, **settings):
    config = {f"fedsens-{name.replace('_', '-')}": str(value) for name, value in settings.items()}
    return KeyStore(
        ClientSettings.from_node({"fedsens-state-dir": str(folder), **config}, {}), run, node
    )


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_nothing_is_written_before_it_is_needed(tmp_path):
    assert store(tmp_path / "state").key is None
    assert list(tmp_path.iterdir()) == []


def test_an_identity_persists_and_differs_by_run_and_node(tmp_path):
    mine = store(tmp_path).public_key
    assert store(tmp_path).public_key == mine
    assert len({mine, store(tmp_path, node=6).public_key, store(tmp_path, run=8).public_key}) == 3


def test_a_kept_key_persists(tmp_path):
    store(tmp_path).keep(KEY)
    assert store(tmp_path).key == KEY
    assert store(tmp_path, node=6).key is None
    assert store(tmp_path, run=8).key is None


def test_only_the_owner_can_read_what_is_stored(tmp_path):
    before = os.umask(0)
    try:
        keys = store(tmp_path)
        keys.keep(KEY)
        assert keys.identity
        assert keys.run_identity
    finally:
        os.umask(before)
    folder = tmp_path / "run-7" / "node-5"
    assert mode(folder) == mode(folder.parent) == 0o700
    files = {path.name: mode(path) for path in folder.iterdir()}
    names = ["identity", "key", "key.parties.json", "run-identity"]
    assert files == dict.fromkeys(names, 0o600)


def test_the_same_key_may_arrive_again_but_no_other(tmp_path):
    keys = store(tmp_path)
    keys.keep(KEY)
    keys.keep(KEY)
    for holder in (keys, store(tmp_path)):
        with pytest.raises(KeyMismatchError, match="does not change within a run"):
            holder.keep(OTHER)
    assert store(tmp_path).key == KEY


def test_a_provisioned_key_is_used_and_never_replaced(tmp_path):
    KEY.save(tmp_path / "key")
    keys = store(tmp_path / "state", key_file=tmp_path / "key")
    assert keys.provisioned
    assert keys.key == KEY
    with pytest.raises(KeyMismatchError):
        keys.keep(OTHER)


def test_a_missing_provisioned_key_is_an_error_not_an_empty_hand(tmp_path):
    with pytest.raises(KeyFileError, match="nowhere"):
        _ = store(tmp_path, key_file=tmp_path / "nowhere").key


def test_an_identity_file_may_be_provisioned(tmp_path):
    path = tmp_path / "identity"
    first = store(tmp_path / "a", identity_file=path).public_key
    assert store(tmp_path / "b", identity_file=path, node=9).public_key == first
    assert mode(path) == 0o600


@pytest.mark.parametrize("name", ["identity", "key"])
def test_files_that_others_can_read_are_refused(tmp_path, name):
    keys = store(tmp_path)
    keys.keep(KEY)
    assert keys.identity
    (tmp_path / "run-7" / "node-5" / name).chmod(0o640)
    with pytest.raises(KeyFileError, match="0600"):
        getattr(store(tmp_path), name)


@pytest.mark.parametrize("name", ["identity", "key"])
def test_damaged_files_are_named_errors(tmp_path, name):
    keys = store(tmp_path)
    keys.keep(KEY)
    assert keys.identity
    (tmp_path / "run-7" / "node-5" / name).write_bytes(b"damaged")
    with pytest.raises(KeyFileError):
        getattr(store(tmp_path), name)


def test_a_folder_that_cannot_be_made_is_an_error_that_says_what_to_set(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for use in (lambda keys: keys.identity, lambda keys: keys.keep(KEY)):
        with pytest.raises(KeyFileError, match="set fedsens-state-dir"):
            use(store(tmp_path / "file"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_rights_is_an_error(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(KeyFileError, match="set fedsens-state-dir"):
        _ = store(tmp_path / "locked").identity


def test_without_a_roster_everybody_is_welcome(tmp_path):
    store(tmp_path).check_roster(PUBLIC)


def test_a_roster_admits_its_members_only(tmp_path):
    (tmp_path / "roster.json").write_text(json.dumps([key.hex() for key in PUBLIC[:2]]))
    keys = store(tmp_path, roster_file=tmp_path / "roster.json")
    keys.check_roster(PUBLIC[:2])
    with pytest.raises(RosterError, match=PUBLIC[2].hex()[:16]) as caught:
        keys.check_roster(PUBLIC)
    assert PUBLIC[0].hex()[:16] not in str(caught.value)


@pytest.mark.parametrize("text", [None, "", "{", "5", "[5]", '["zz"]', '[["00"]]'])
def test_a_roster_that_cannot_be_read_admits_nobody(tmp_path, text):
    if text is not None:
        (tmp_path / "roster.json").write_text(text)
    with pytest.raises(RosterError, match="roster"):
        store(tmp_path, roster_file=tmp_path / "roster.json").check_roster(PUBLIC[:1])
