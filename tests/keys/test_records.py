"""One upload for each round, one list for each upload: what a client remembers of a run."""

from __future__ import annotations

import numpy as np
import pytest

from fedsens.errors import KeyFileError, ListError, RoundError
from fedsens.keys import PendingUpload, RunRecord, UploadRecords

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
