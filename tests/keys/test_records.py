"""One upload for each round, one list for each upload: what a client remembers of a run."""

from __future__ import annotations

import base64
import contextlib
import os
import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fedsens import EncryptionMask
from fedsens.errors import DowngradeError, KeyFileError, ListError, RoundError
from fedsens.keys import PendingUpload, UploadRecords
from fedsens.keys._records import RunRecord

CONTEXT, OTHER_CONTEXT = bytes(32), bytes([1]) * 32
ONE, TWO = b"\1" * 32, b"\2" * 32
COHORT = (("ab" * 32, "cd" * 32), ("01" * 32, "23" * 32))


def upload(seed=0, context=CONTEXT):
    secret = np.random.default_rng(seed).integers(-21, 22, 4096)
    return PendingUpload(secret, 0.1 + seed, bytes([seed]) * 16, context, COHORT)


def sent(records, server_round=3, kind="update", seed=0):
    records.begin(kind, server_round, CONTEXT)
    records.keep(kind, server_round, upload(seed))
    return records


def padded(pending):
    return (pending.secret.astype(np.int16) + 1000).tobytes()


@pytest.fixture
def records(tmp_path):
    return UploadRecords(tmp_path)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_upload_comes_back_in_another_process_as_it_was(records, tmp_path):
    sent(records)
    found = UploadRecords(tmp_path).pending("update", 3)
    expected = upload()
    assert np.array_equal(found.secret, expected.secret)
    assert found.secret.dtype == np.int64
    for name in ("weight", "nonce", "context", "cohort"):
        assert getattr(found, name) == getattr(expected, name)


def test_a_list_is_answered_with_the_same_bytes_again_and_no_other_list_is(records, tmp_path):
    sent(records)
    answer = records.answer("update", 3, ONE, padded)
    assert answer == padded(upload())
    for again in (records, UploadRecords(tmp_path)):
        assert again.answer("update", 3, ONE, pytest.fail) == answer
        with pytest.raises(ListError, match="got another"):
            again.answer("update", 3, TWO, pytest.fail)


def test_a_secret_is_gone_when_it_was_used(records, tmp_path):
    sent(records)
    records.answer("update", 3, ONE, lambda _: b"padded")
    assert not any((tmp_path / "update-3.secret").read_bytes())
    with pytest.raises(RoundError, match="whose list was answered"):
        records.pending("update", 3)


@pytest.mark.parametrize("context", [CONTEXT, OTHER_CONTEXT])
@pytest.mark.parametrize("step", ["begun", "kept", "answered"])
def test_a_round_is_begun_once_whatever_came_of_it(records, tmp_path, context, step):
    records.begin("update", 3, CONTEXT)
    if step != "begun":
        records.keep("update", 3, upload())
    if step == "answered":
        records.answer("update", 3, ONE, padded)
    with pytest.raises(RoundError, match="round 3, which was answered already"):
        UploadRecords(tmp_path).begin("update", 3, context)


def test_an_earlier_round_is_refused(records):
    records.begin("update", 5, CONTEXT)
    with pytest.raises(RoundError, match="expected round 5 or later, got 3"):
        records.begin("update", 3, CONTEXT)
    records.begin("map", 3, CONTEXT)


def test_a_later_round_removes_what_is_left_of_earlier_ones_of_its_kind(records, tmp_path):
    sent(records, 3)
    sent(records, 3, "map")
    records.answer("map", 3, ONE, padded)
    records.begin("update", 10, CONTEXT)
    assert names(tmp_path) == [
        "map-3.answer",
        "map-3.begun",
        "map-3.list",
        "map-3.secret",
        "update-10.begun",
    ]
    for use in (
        lambda: records.pending("update", 3),
        lambda: records.answer("update", 3, ONE, len),
    ):
        with pytest.raises(RoundError):
            use()


@pytest.mark.parametrize("step", ["nothing", "begun"])
def test_without_an_upload_no_list_is_answered_or_taken(records, tmp_path, step):
    if step == "begun":
        records.begin("update", 3, CONTEXT)
    with pytest.raises(RoundError, match="got round 3; leave it out"):
        records.answer("update", 3, ONE, pytest.fail)
    assert "update-3.list" not in names(tmp_path)


def test_an_upload_needs_its_own_beginning(records):
    with pytest.raises(RoundError, match="no beginning"):
        records.keep("update", 3, upload())
    records.begin("update", 3, CONTEXT)
    with pytest.raises(RoundError, match="got another"):
        records.keep("update", 3, upload(context=OTHER_CONTEXT))
    records.keep("update", 3, upload())
    with pytest.raises(RoundError, match="a second one"):
        records.keep("update", 3, upload(1))
    records.answer("update", 3, ONE, padded)
    with pytest.raises(RoundError, match="a second one"):
        records.keep("update", 3, upload(1))


STEPS = {
    "begun": lambda records: records.keep("update", 3, upload()),
    "secret": lambda records: records.answer("update", 3, ONE, padded),
    "list": lambda records: records.answer("update", 3, ONE, padded),
    "answer": lambda records: records.answer("update", 3, ONE, padded),
}


def before(part, folder):
    """Records just before the step that reads a part."""
    records = UploadRecords(folder)
    records.begin("update", 3, CONTEXT)
    if part != "begun":
        records.keep("update", 3, upload())
    if part == "list":
        with pytest.raises(ZeroDivisionError):
            records.answer("update", 3, ONE, lambda _: 1 / 0)
    if part == "answer":
        records.answer("update", 3, ONE, padded)
    return records


@pytest.mark.parametrize("part", STEPS)
@pytest.mark.parametrize("damage", ["empty", "cut", "first", "flipped", "text"])
def test_a_damaged_record_is_a_named_error_that_shows_nothing(tmp_path, part, damage):
    records = before(part, tmp_path)
    path = tmp_path / f"update-3.{part}"
    data = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "cut": data[:-3],
            "first": b"0" + data[1:] if data[:1] != b"0" else b"1" + data[1:],
            "flipped": data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
            "text": b"\xff" * 100,
        }[damage]
    )
    with pytest.raises(KeyFileError, match=rf"update-3\.{part}, got a damaged one") as caught:
        STEPS[part](records)
    secret = base64.b64encode(upload().secret.astype("<i2").tobytes()).decode()
    text = "".join(traceback.format_exception(caught.value))
    assert not any(secret[low : low + 12] in text for low in range(0, len(secret) - 12, 3))
    records.begin("update", 4, CONTEXT)
    assert names(tmp_path) == ["update-4.begun"]


@pytest.mark.parametrize("part", STEPS)
def test_a_record_that_others_can_read_is_refused(tmp_path, part):
    records = before(part, tmp_path)
    (tmp_path / f"update-3.{part}").chmod(0o644)
    with pytest.raises(KeyFileError, match="0600"):
        STEPS[part](records)


@pytest.mark.parametrize("part", STEPS)
def test_a_link_in_the_place_of_a_record_is_not_written_through(records, tmp_path, part):
    victim = tmp_path / "victim"
    victim.write_bytes(b"old")
    (tmp_path / f"update-3.{part}").symlink_to(victim)
    for use in (lambda: sent(records), lambda: records.answer("update", 3, ONE, padded)):
        with contextlib.suppress(KeyFileError, RoundError):
            use()
    with contextlib.suppress(KeyFileError, RoundError):
        records.begin("update", 4, CONTEXT)
    assert victim.read_bytes() == b"old"


def test_records_are_their_owners_alone_whatever_the_umask(tmp_path):
    mask = os.umask(0)
    try:
        before("answer", tmp_path)
        RunRecord(tmp_path).record_model(3, 2, 0, "ab" * 32)
    finally:
        os.umask(mask)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    assert len(names(tmp_path)) == 5


FULL = """
import pathlib, resource, sys
from fedsens.errors import KeyFileError
from fedsens.keys import UploadRecords
from tests.keys.test_records import ACTIONS
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
try:
    ACTIONS[sys.argv[2]](UploadRecords(pathlib.Path(sys.argv[1])))
except KeyFileError as error:
    print(error)
"""
ACTIONS = {
    "begin": lambda records: records.begin("update", 3, CONTEXT),
    "keep": lambda records: records.keep("update", 3, upload()),
    "answer": lambda records: records.answer("update", 3, ONE, padded),
}


@pytest.mark.skipif(os.name != "posix", reason="the limit is POSIX's")
@pytest.mark.parametrize(
    ("action", "room", "left"),
    [
        ("begin", 20, []),
        ("keep", 500, ["begun"]),
        ("answer", 20, ["begun", "secret"]),
        ("answer", 500, ["begun", "list", "secret"]),
    ],
)
def test_a_full_disk_leaves_nothing_half_done_and_it_goes_on_with_room(
    tmp_path, action, room, left
):
    records = UploadRecords(tmp_path)
    steps = list(ACTIONS)
    for earlier in steps[: steps.index(action)]:
        ACTIONS[earlier](records)
    command = [sys.executable, "-c", FULL, str(tmp_path), action, str(room)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "with room" in run.stdout
    assert names(tmp_path) == [f"update-3.{part}" for part in left]
    for step in steps[steps.index(action) :]:
        ACTIONS[step](records)
    with pytest.raises(ListError):
        records.answer("update", 3, TWO, padded)


def test_the_last_model_is_recorded(tmp_path):
    assert RunRecord(tmp_path).last_round() == 0
    RunRecord(tmp_path).record_model(3, 2, 0, "ab" * 32)
    RunRecord(tmp_path).record_model(4, 3, 1, "cd" * 32)
    record = RunRecord(tmp_path)
    assert (record.last_round(), record.last_model_round(), record.last_key_index()) == (4, 3, 1)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"round": "last"}', '{"round": null}'])
def test_a_damaged_record_is_a_named_error(tmp_path, text):
    RunRecord(tmp_path).record_model(3, 2, 0, "ab" * 32)
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(KeyFileError, match="last model in"):
        RunRecord(tmp_path).last_round()


def mask(*chosen, digest="ab" * 32):
    return EncryptionMask(np.isin(np.arange(6), chosen), digest)


def test_a08_a_mask_covers_the_last_one_unless_masks_may_move(tmp_path):
    record = RunRecord(tmp_path)
    assert record.last_mask() == ""
    for each in (mask(1), mask(1, 2), mask(1, 2)):
        record.record_mask(each, False)
        assert RunRecord(tmp_path).last_mask() == each.digest
    for other in (mask(1), mask(3, 4, 5), mask(), mask(1, 2, 3, digest="cd" * 32)):
        with pytest.raises(DowngradeError, match="covers whatever an earlier one"):
            record.record_mask(other, False)
        assert record.last_mask() == mask(1, 2).digest
    record.record_mask(mask(5), True)
    assert record.last_mask() == mask(5).digest


def test_a_damaged_record_of_a_mask_is_a_named_error(tmp_path):
    RunRecord(tmp_path).record_mask(mask(1), False)
    (tmp_path / "mask").write_bytes(b"damaged")
    with pytest.raises(KeyFileError, match="record of the last mask in"):
        RunRecord(tmp_path).record_mask(mask(1), False)


def test_a08_of_masks_at_once_that_do_not_cover_each_other_one_counts(tmp_path):
    def note(index):
        try:
            RunRecord(tmp_path).record_mask(mask(index), False)
        except DowngradeError:
            return 0
        return 1

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(note, range(6))) == 1


def test_a03_the_first_initial_model_stays(tmp_path):
    record = RunRecord(tmp_path)
    assert record.first_initial("ab" * 32) == "ab" * 32
    assert record.first_initial("cd" * 32) == "ab" * 32
