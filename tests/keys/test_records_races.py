"""Records of uploads between threads and processes, and after a crash at any line."""

from __future__ import annotations

import base64
import os
import random
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest

from fedsens import _files as files
from fedsens.errors import FedSensError, ListError, RoundError
from fedsens.keys import UploadRecords

from .test_records import CONTEXT, ONE, TWO, padded, sent, upload

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes are forked")
SECRET = base64.b64encode(upload().secret.astype("<i2").tobytes()).decode()
DIED = "died"


def answer_of(pending):
    """Another one at each call, so that answers that were computed twice can be told apart."""
    return os.urandom(8) + padded(pending)


@pytest.fixture
def quick():
    """A folder in memory where there is one: no test here asks anything of the disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


def outcome(task):
    try:
        return task()
    except FedSensError as error:
        return type(error)


def in_threads(*tasks):
    """Outcomes of tasks that start at the same moment."""
    barrier = Barrier(len(tasks))

    def start(task):
        barrier.wait()
        return outcome(task)

    with ThreadPoolExecutor(len(tasks)) as pool:
        return list(pool.map(start, tasks))


def in_processes(*tasks):
    """As in_threads; a task whose process ended before it has the outcome DIED."""
    start, go = os.pipe()
    ends = []
    for task in tasks:
        mine, theirs = os.pipe()
        if not os.fork():
            _become(task, start, theirs)
        os.close(theirs)
        ends.append(mine)
    os.write(go, bytes(len(tasks)))
    found = []
    for end in ends:
        with os.fdopen(end, "rb") as file:
            found.append(_unpacked(file.read()))
        os.wait()
    os.close(start)
    os.close(go)
    return found


def _become(task, start, end):
    """The child: never returns to the tests."""
    try:
        os.read(start, 1)
        found = outcome(task)
        packed = f"!{found.__name__}" if isinstance(found, type) else "0" if found is None else "="
        os.write(end, packed.encode() + (found if isinstance(found, bytes) else b""))
    finally:
        os._exit(0)


def _unpacked(content):
    errors = {f"!{error.__name__}".encode(): error for error in (ListError, RoundError)}
    if content[:1] == b"=":
        return content[1:]
    return {b"": DIED, b"0": None, **errors}[content]


RUNNERS = pytest.mark.parametrize("at_once", [in_threads, in_processes])


@RUNNERS
@pytest.mark.parametrize("attempt", range(6))
def test_of_two_lists_at_once_one_is_answered_with_one_answer(quick, at_once, attempt):
    sent(UploadRecords(quick))
    digests = [ONE, TWO] * 4
    random.Random(attempt).shuffle(digests)
    found = at_once(
        *(
            lambda digest=digest: UploadRecords(quick).answer("update", 3, digest, answer_of)
            for digest in digests
        )
    )
    answered = {
        digest for digest, each in zip(digests, found, strict=True) if each is not ListError
    }
    assert len(answered) == 1
    answers = {each for each in found if each is not ListError}
    assert len(answers) == 1
    assert isinstance(answers.pop(), bytes)
    assert SECRET not in contents(quick)


@RUNNERS
def test_of_many_beginnings_at_once_one_succeeds(quick, at_once):
    found = at_once(*[lambda: UploadRecords(quick).begin("update", 3, CONTEXT)] * 8)
    assert (found.count(None), found.count(RoundError)) == (1, 7)


@RUNNERS
def test_of_many_uploads_at_once_one_is_kept(quick, at_once):
    UploadRecords(quick).begin("update", 3, CONTEXT)
    found = at_once(
        *(
            lambda seed=seed: UploadRecords(quick).keep("update", 3, upload(seed))
            for seed in range(6)
        )
    )
    assert (found.count(None), found.count(RoundError)) == (1, 5)
    kept = UploadRecords(quick).pending("update", 3)
    assert np.array_equal(kept.secret, upload(found.index(None)).secret)


@RUNNERS
@pytest.mark.parametrize("attempt", range(6))
def test_a_round_that_begins_meanwhile_leaves_no_secret_of_an_earlier_one(quick, at_once, attempt):
    UploadRecords(quick).begin("update", 3, CONTEXT)
    tasks = [
        lambda: UploadRecords(quick).keep("update", 3, upload()),
        lambda: UploadRecords(quick).begin("update", 4, CONTEXT),
        lambda: UploadRecords(quick).begin("update", 3, CONTEXT),
        lambda: UploadRecords(quick).answer("update", 3, ONE, answer_of),
        lambda: UploadRecords(quick).answer("update", 3, TWO, answer_of),
    ]
    random.Random(attempt).shuffle(tasks)
    found = at_once(*tasks)
    answers = [each for each in found if isinstance(each, bytes)]
    assert len(answers) <= 1
    assert SECRET not in contents(quick)
    with pytest.raises(RoundError, match="expected round 4 or later"):
        UploadRecords(quick).begin("update", 3, CONTEXT)


def contents(folder):
    return "".join(path.read_text() for path in folder.iterdir())


def dies_at(line, task):
    """A task whose process ends without a word at the n-th line of the code that touches files."""
    left = line

    def trace(frame, event, _):
        nonlocal left
        watched = frame.f_code.co_filename == files.__file__
        if not watched and frame.f_code is not UploadRecords._remove_before.__code__:
            return None
        left -= event == "line"
        if not left:
            os._exit(9)
        return trace

    def run():
        sys.settrace(trace)
        return task()

    return run


def crashes(task_in, folder):
    """The folder after a crash at each line of a task in turn, until there is no such line."""
    for line in range(1, 2000):
        place = folder / str(line)
        place.mkdir()
        task = task_in(UploadRecords(place))
        (found,) = in_processes(dies_at(line, task))
        yield place, found
        if found is not DIED:
            return
    pytest.fail("the task never came to its end")


def test_after_a_crash_in_an_answer_the_same_list_may_be_answered_and_no_other(quick):
    def prepared(records):
        sent(records)
        return lambda: records.answer("update", 3, ONE, answer_of)

    claimed = 0
    for place, found in crashes(prepared, quick):
        records = UploadRecords(place)
        other = outcome(lambda records=records: records.answer("update", 3, TWO, answer_of))
        same = outcome(lambda records=records: records.answer("update", 3, ONE, answer_of))
        assert {type(other), type(same)} == {type, bytes}, place
        assert ListError in {other, same}, place
        assert found in (DIED, same), place
        assert SECRET not in contents(place)
        claimed += other is ListError
        records.begin("update", 4, CONTEXT)
        assert SECRET not in contents(place)
        assert [path.name for path in place.iterdir()] == ["update-4.begun"]
    assert 10 < claimed < int(place.name)


def test_after_a_crash_anywhere_a_round_has_at_most_one_upload(quick):
    def prepared(records):
        def run():
            records.begin("update", 3, CONTEXT)
            records.keep("update", 3, upload())
            return b"sent"

        return run

    begun = uploads = 0
    for place, found in crashes(prepared, quick):
        records = UploadRecords(place)
        again = outcome(lambda records=records: records.begin("update", 3, CONTEXT))
        begun += again is RoundError
        kept = outcome(lambda records=records: records.keep("update", 3, upload(1)))
        uploads += kept is RoundError
        if found is not DIED:
            assert again is kept is RoundError
        records.begin("update", 4, CONTEXT)
        assert SECRET not in contents(place)
    assert 1 < uploads < begun < int(place.name)


def test_after_a_crash_in_a_beginning_the_next_one_removes_what_is_left(quick):
    def prepared(records):
        sent(records)
        sent(records, 3, "map")
        return lambda: records.begin("update", 4, CONTEXT) or b"begun"

    for place, _ in crashes(prepared, quick):
        records = UploadRecords(place)
        found = [
            outcome(
                lambda digest=digest, records=records: records.answer(
                    "update", 3, digest, answer_of
                )
            )
            for digest in (ONE, TWO)
        ]
        assert sum(isinstance(each, bytes) for each in found) <= 1
        records.begin("update", 5, CONTEXT)
        assert [path.name for path in place.glob(".*")] == []
        assert {path.name for path in place.glob("update*")} == {"update-5.begun"}
        assert np.array_equal(records.pending("map", 3).secret, upload().secret)


def test_what_compute_raises_comes_out_and_the_list_stays_the_only_one(quick):
    records = sent(UploadRecords(quick))
    with pytest.raises(ZeroDivisionError):
        records.answer("update", 3, ONE, lambda _: 1 / 0)
    with pytest.raises(ListError):
        records.answer("update", 3, TWO, answer_of)
    assert records.answer("update", 3, ONE, padded) == padded(upload())
