"""Any sequence of what servers can ask of one client's records, with restarts and failures."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fedsens.errors import ListError, RoundError
from fedsens.keys import PendingUpload, UploadRecords

KINDS = st.sampled_from(["update", "map"])
ROUNDS = st.integers(0, 4)
CONTEXTS = st.sampled_from([bytes(32), b"\1" * 32])
DIGESTS = st.sampled_from([b"\1" * 32, b"\2" * 32])


class Round:
    """What must be known of the newest round of a kind."""

    def __init__(self, number, context):
        self.number, self.context = number, context
        self.kept = self.digest = self.answer = None


class Records(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.records = UploadRecords(self.folder)
        self.newest: dict[str, Round] = {}
        self.drawn = 0

    def teardown(self):
        shutil.rmtree(self.folder)

    @rule()
    def restart(self):
        self.records = UploadRecords(self.folder)

    @rule(kind=KINDS, number=ROUNDS, context=CONTEXTS)
    def begin(self, kind, number, context):
        newest = self.newest.get(kind)
        if newest is None or newest.number < number:
            self.records.begin(kind, number, context)
            self.newest[kind] = Round(number, context)
        else:
            self.refused(RoundError, self.records.begin, kind, number, context)

    @rule(kind=KINDS, number=ROUNDS, context=CONTEXTS)
    def keep(self, kind, number, context):
        newest = self.newest.get(kind)
        self.drawn += 1
        secret = np.random.default_rng(self.drawn).integers(-21, 22, 64)
        pending = PendingUpload(secret, self.drawn / 7, bytes(16), context, ())
        fits = newest and (newest.number, newest.context, newest.kept) == (number, context, None)
        if fits:
            self.records.keep(kind, number, pending)
            newest.kept = pending
        else:
            self.refused(RoundError, self.records.keep, kind, number, pending)

    @rule(kind=KINDS, number=ROUNDS)
    def look(self, kind, number):
        newest = self.newest.get(kind)
        if newest and newest.number == number and newest.kept and newest.answer is None:
            found = self.records.pending(kind, number)
            assert np.array_equal(found.secret, newest.kept.secret)
            assert found.weight == newest.kept.weight
        else:
            self.refused(RoundError, self.records.pending, kind, number)

    @rule(kind=KINDS, number=ROUNDS, digest=DIGESTS, fails=st.booleans())
    def answer(self, kind, number, digest, fails):
        newest = self.newest.get(kind)
        calls = []

        def compute(pending):
            calls.append(pending)
            if fails:
                raise ZeroDivisionError
            return digest + pending.secret.tobytes()

        arguments = kind, number, digest, compute
        if not newest or newest.number != number or newest.kept is None:
            self.refused(RoundError, self.records.answer, *arguments)
        elif newest.digest not in {None, digest}:
            self.refused(ListError, self.records.answer, *arguments)
        elif newest.answer is not None:
            assert self.records.answer(*arguments) == newest.answer
        else:
            newest.digest = digest
            if fails:
                self.refused(ZeroDivisionError, self.records.answer, *arguments)
            else:
                newest.answer = digest + newest.kept.secret.tobytes()
                assert self.records.answer(*arguments) == newest.answer
            calls.clear()
        assert not calls  # nothing is computed for a list that is not to be answered

    @invariant()
    def nothing_but_the_newest_rounds_is_kept(self):
        expected = {
            f"{kind}-{newest.number}.{part}"
            for kind, newest in self.newest.items()
            for part, there in {
                "begun": True,
                "secret": newest.kept,
                "list": newest.digest,
                "answer": newest.answer,
            }.items()
            if there
        }
        assert {path.name for path in self.folder.iterdir()} == expected

    @invariant()
    def a_secret_that_was_used_is_zeros(self):
        for kind, newest in self.newest.items():
            if newest.answer is not None:
                path = self.folder / f"{kind}-{newest.number}.secret"
                assert not any(path.read_bytes())

    @staticmethod
    def refused(error, task, *arguments):
        try:
            task(*arguments)
        except error:
            return
        raise AssertionError(f"expected {error.__name__}")


TestRecords = Records.TestCase
TestRecords.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
