import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from fedsens.errors import KeyFileError, KeyMismatchError, RosterError
from fedsens.keys import ClientSettings, FederationKey, KeyStore
from fedsens.keys._records import RunRecord

KEY, OTHER = FederationKey.generate(), FederationKey.generate()
PUBLIC = [bytes([n]) * 32 for n in range(3)]


def store(folder, node=5, run=7, **settings):
    settings = {"min_ratio": 1, **settings}
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


def test_the_run_has_an_identity_of_its_own_even_with_an_identity_file(tmp_path):
    path = tmp_path / "identity"
    keys = [store(tmp_path / "s", run=run, identity_file=path) for run in (7, 8)]
    assert keys[0].public_key == keys[1].public_key
    assert len({*(each.run_public_key for each in keys), keys[0].public_key}) == 3
    assert store(tmp_path / "s", identity_file=path).run_public_key == keys[0].run_public_key
    assert mode(tmp_path / "s" / "run-7" / "node-5" / "run-identity") == 0o600


@pytest.mark.parametrize("name", ["public_key", "run_public_key"])
def test_messages_at_once_make_one_identity(tmp_path, name):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: getattr(store(tmp_path), name), range(16)))
    assert len(set(found)) == 1
    assert found[0] == getattr(store(tmp_path), name)


def test_a_client_goes_by_its_identity_and_never_by_a_number_that_the_server_chose(tmp_path):
    own = store(tmp_path / "a")
    assert own.name == own.public_key.hex()
    path = tmp_path / "identity"
    names = {store(tmp_path / "b", node=n, identity_file=path).name for n in (5, 6)}
    assert len(names) == 1


def test_a_rosters_members_count_where_the_client_goes_by_its_identity_file(tmp_path):
    roster, identity = tmp_path / "roster.json", tmp_path / "identity"
    roster.write_text(json.dumps([key.hex() for key in PUBLIC]))
    both = store(tmp_path, roster_file=roster, identity_file=identity)
    assert both.members == {key.hex() for key in PUBLIC}
    assert store(tmp_path, roster_file=roster).members is None
    assert store(tmp_path, identity_file=identity).members is None


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
    names = ["identity", "key", "key.parties", "run-identity"]
    assert files == dict.fromkeys(names, 0o600)


def test_the_same_key_may_arrive_again_but_no_other(tmp_path):
    keys = store(tmp_path)
    keys.keep(KEY)
    keys.keep(KEY)
    for holder in (keys, store(tmp_path)):
        with pytest.raises(KeyMismatchError, match="does not change within a run"):
            holder.keep(OTHER)
    assert store(tmp_path).key == KEY


def test_messages_at_once_may_bring_the_same_key(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: store(tmp_path).keep(KEY, [bytes([n]) * 32]), range(16)))
    assert store(tmp_path).key == KEY
    parties = (tmp_path / "run-7" / "node-5" / "key.parties").read_text().split()
    assert sorted(parties) == [(bytes([n]) * 32).hex() for n in range(16)]


def test_of_different_keys_at_once_one_is_kept_and_the_others_are_refused(tmp_path):
    def keep(key):
        try:
            store(tmp_path).keep(key)
        except KeyMismatchError:
            return None
        return key

    with ThreadPoolExecutor(8) as pool:
        kept = [key for key in pool.map(keep, [KEY, OTHER] * 8) if key]
    assert set(kept) == {store(tmp_path).key}


def test_keys_of_a_run_have_places_and_the_last_that_opened_a_model_is_in_force(tmp_path):
    keys = store(tmp_path)
    keys.keep(KEY)
    keys.keep(OTHER, key_index=1)
    assert store(tmp_path).key_of(0) == store(tmp_path).key == KEY
    assert store(tmp_path).key_of(1) == OTHER
    assert store(tmp_path).key_of(2) is None
    RunRecord(keys.folder).record_model(3, 2, 1, "ab" * 32)
    assert store(tmp_path).key == OTHER


@pytest.mark.parametrize("places", [(0, 1), (1, 0), (0, 11), (1, 2)])
def test_a06_an_old_key_is_not_kept_as_a_new_one(tmp_path, places):
    """Whom the rotation was to shut out holds it."""
    store(tmp_path).keep(KEY, key_index=places[0])
    for run in (7, 8):  # a run that continues the first one knows its keys, too
        with pytest.raises(KeyMismatchError, match=f"which is key {places[0] + 1} in"):
            store(tmp_path, run=run).keep(KEY, key_index=places[1])
        assert store(tmp_path, run=run).key_of(places[1]) is None


def test_an_old_key_is_not_taken_over_as_a_new_one(tmp_path):
    store(tmp_path, run=6).keep(KEY)
    with pytest.raises(KeyMismatchError, match="never used before as key 2"):
        store(tmp_path).adopt(KEY.fingerprint, 1)
    store(tmp_path).adopt(KEY.fingerprint, 0)
    assert store(tmp_path).key == KEY


def test_two_copies_of_a_key_in_a_folder_are_no_rotation(tmp_path):
    (tmp_path / "keys").mkdir()
    KEY.save(tmp_path / "keys" / "1.key", "a locked copy shows its fingerprint")
    OTHER.save(tmp_path / "keys" / "2.key")
    KEY.save(tmp_path / "keys" / "3.key")
    keys = store(tmp_path / "state", key_file=tmp_path / "keys")
    assert keys.key_of(1) == OTHER
    with pytest.raises(KeyMismatchError, match=r"as key 3 .*which is key 1 in .*rotate to a new"):
        keys.key_of(2)


def test_a_key_that_was_placed_after_the_fact_is_refused_when_it_is_used(tmp_path):
    store(tmp_path).keep(KEY)
    KEY.save(tmp_path / "run-7" / "node-5" / "key-1")
    with pytest.raises(KeyMismatchError):
        store(tmp_path).key_of(1)


def test_a_resumed_run_takes_over_the_key_under_another_node_number(tmp_path):
    store(tmp_path, run=6, node=1).keep(KEY, PUBLIC[:2], 3)
    keys = store(tmp_path, node=9)
    keys.adopt("", 3)
    keys.adopt(OTHER.fingerprint, 3)
    assert not keys.holds_key
    keys.adopt(KEY.fingerprint, 3)
    assert keys.holds_key
    assert store(tmp_path, node=9).key_of(3) == KEY
    assert (keys.folder / "key-3.parties").read_text().split() == [p.hex() for p in PUBLIC[:2]]


def test_a_resumed_run_trusts_nobody_outside_the_roster(tmp_path):
    store(tmp_path, run=6).keep(KEY, PUBLIC)
    roster = tmp_path / "roster.json"
    roster.write_text(json.dumps([key.hex() for key in PUBLIC[:2]]))
    with pytest.raises(RosterError, match=PUBLIC[2].hex()[:16]):
        store(tmp_path, roster_file=roster).adopt(KEY.fingerprint)
    (tmp_path / "run-6" / "node-5" / "key.parties").write_text("nobody")
    with pytest.raises(RosterError, match="start the run anew"):
        store(tmp_path, roster_file=roster).adopt(KEY.fingerprint)
    (tmp_path / "run-6" / "node-5" / "key.parties").unlink()
    with pytest.raises(RosterError, match="start the run anew"):
        store(tmp_path, roster_file=roster).adopt(KEY.fingerprint)
    store(tmp_path).adopt(KEY.fingerprint)
    assert store(tmp_path).key == KEY


def test_files_of_earlier_runs_that_are_no_keys_are_passed_over(tmp_path, caplog):
    store(tmp_path, run=5).keep(OTHER)
    store(tmp_path, run=6).keep(KEY)
    (tmp_path / "run-5" / "node-5" / "key").write_text('{"type": "fedsens secret key"}')
    store(tmp_path).adopt(KEY.fingerprint)
    assert store(tmp_path).key == KEY
    assert "passed over a key file" in caplog.text


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


@pytest.mark.parametrize("level", [(), ("run-7",), ("run-7", "node-5")], ids=len)
def test_a_state_folder_that_others_can_write_to_is_refused(tmp_path, level):
    store(tmp_path / "state").keep(KEY)
    tmp_path.joinpath("state", *level).chmod(0o777)
    for use in ("identity", "run_identity", "folder"):
        with pytest.raises(KeyFileError, match=r"others could write to it.*set fedsens-state-dir"):
            getattr(store(tmp_path / "state"), use)


def test_nothing_is_written_through_a_link_in_the_state_folder(tmp_path):
    (tmp_path / "victim").write_bytes(b"old")
    folder = store(tmp_path / "state").folder
    for name in ("key", "key.parties", "identity", "run-identity", "model.json"):
        (folder / name).symlink_to(tmp_path / "victim")
    keys = store(tmp_path / "state")
    for use in (
        lambda: keys.identity,
        lambda: keys.run_identity,
        lambda: keys.keep(KEY),
        lambda: keys.note_parties(PUBLIC),
    ):
        with pytest.raises(KeyFileError):
            use()
    RunRecord(folder).record_model(1, 0, 0, "ab" * 32)
    assert (tmp_path / "victim").read_bytes() == b"old"


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


@pytest.mark.parametrize("right", [0o020, 0o002])
def test_a_roster_that_others_can_write_admits_nobody(tmp_path, right):
    path = tmp_path / "roster.json"
    path.write_text(json.dumps([key.hex() for key in PUBLIC]))
    path.chmod(0o644 | right)
    with pytest.raises(RosterError, match="others could write to it: chmod 644"):
        store(tmp_path, roster_file=path).check_roster(PUBLIC)
    with pytest.raises(RosterError, match="others could write to it"):
        _ = store(tmp_path, roster_file=path, identity_file=tmp_path / "identity").members


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("name", ["roster_file", "identity_file"])
def test_a_roster_or_an_identity_of_somebody_else_is_refused(tmp_path, name):
    path = tmp_path / "file"
    path.touch(mode=0o600)
    path.write_bytes(b"[]".ljust(32))
    os.chown(path, 12345, -1)
    keys = store(tmp_path / "state", **{name: path})
    with pytest.raises((RosterError, KeyFileError), match="got user 12345"):
        keys.check_roster([]) if name == "roster_file" else keys.public_key


@pytest.mark.parametrize("text", [None, "", "{", "5", "[" * 100_000, "[5]", '["zz"]', '[["00"]]'])
def test_a_roster_that_cannot_be_read_admits_nobody(tmp_path, text):
    if text is not None:
        (tmp_path / "roster.json").write_text(text)
    with pytest.raises(RosterError, match="roster"):
        store(tmp_path, roster_file=tmp_path / "roster.json").check_roster(PUBLIC[:1])
