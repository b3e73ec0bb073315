"""Answers are taken one by one as they arrive, and nodes are waited for."""

import gc
import time
import weakref

import pytest
from flwr.app import Message, RecordDict

from fedsens.errors import PhaseError
from fedsens.flower import LocalGrid
from fedsens.flower._grid import StreamingGrid, arriving, wait_for_nodes
from fedsens.flower._records import CIPHERTEXT, MAP

from .federation import Run, is_reply, make_app


def questions(grid):
    return [
        Message(RecordDict(), dst_node_id=node, message_type="query.fedsens_keys")
        for node in grid.get_node_ids()
    ]


class Slow(LocalGrid):
    """One node's answer takes a number of looks."""

    def __init__(self, looks, **options):
        super().__init__(make_app(), 3, **options)
        self.looks = looks

    def pull_messages(self, message_ids):
        late = [self._sent[each].metadata.dst_node_id == 1001 for each in message_ids]
        if any(late) and self.looks > 0:
            self.looks -= 1
            return []
        return super().pull_messages(message_ids)


def test_a_reply_is_there_before_the_next_client_has_answered():
    seen = []
    grid = LocalGrid(make_app(), 3, tap=lambda m: seen.append(m.metadata.src_node_id))
    replies = StreamingGrid(grid).send_and_receive(questions(grid), timeout=9)
    for answered, reply in enumerate(replies, 1):
        assert reply.has_error()  # the question has no header; that it is answered is enough
        assert len(seen) == 2 * answered


def test_who_is_slow_comes_later():
    grid = Slow(looks=1)
    order = [reply.metadata.src_node_id for reply in arriving(grid, questions(grid), None)]
    assert order == [1000, 1002, 1001]


def test_waiting_ends_at_the_deadline():
    grid = Slow(looks=10**9)
    started = time.monotonic()
    replies = list(arriving(grid, questions(grid), 0.3))
    assert [reply.metadata.src_node_id for reply in replies] == [1000, 1002]
    assert time.monotonic() - started >= 0.3


def test_what_is_there_at_the_deadline_is_taken():
    grid = LocalGrid(make_app(), 3)
    assert len(list(arriving(grid, questions(grid), 0.0))) == 3


def test_nodes_are_waited_for():
    grid = LocalGrid(make_app(), 1)
    looks = []

    def connect():
        looks.append(len(grid.nodes))
        if len(looks) == 3:
            grid.connect(999, {"partition-id": 1, "num-partitions": 2})
        return list(grid.nodes)

    grid.get_node_ids = connect
    assert wait_for_nodes(grid, 2, 3.0) == [999, 1000]
    assert looks == [1, 1, 1]


def test_too_few_nodes_are_a_named_error():
    grid = LocalGrid(make_app(), 1)
    with pytest.raises(PhaseError, match=r"at least 2 connected nodes within 0\.1 s, got 1; start"):
        wait_for_nodes(grid, 2, 0.1)
    assert wait_for_nodes(grid, 0, 0.1) == wait_for_nodes(grid, 1, 0.1) == [1000]


@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_the_server_holds_one_ciphertext_at_a_time(ratio):
    held, most = [], []

    def look(message):
        records = message.content if message.has_content() and is_reply_with_bytes(message) else {}
        for name in (CIPHERTEXT, MAP):
            if name in records:
                if any(each() is not None for each in held):
                    gc.collect()  # which takes long, so only where something is left
                most.append(sum(each() is not None for each in held))
                held.append(weakref.ref(records[name]))

    def is_reply_with_bytes(message):
        return is_reply(message) or is_reply(message, "query.fedsens_sensitivity")

    run = Run(grid=LocalGrid(make_app(), 5, tap=look), rounds=2, ratio=ratio)
    assert [r.clients for r in run.reports("train")] == [5, 5]
    assert len(held) == (15 if ratio < 1 else 10)
    assert set(most) == {0}  # those of earlier answers are gone
