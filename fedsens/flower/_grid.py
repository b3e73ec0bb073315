"""A grid of Flower's: replies one by one as they arrive, and waiting for nodes.

Flower's own ``send_and_receive`` returns when the last reply is there, with all of them in memory.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

from flwr.app import Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

from fedsens.errors import PhaseError

# Seconds between two looks where nothing has arrived, at first and at most; Flower's own take 3.
SOON, POLL = 0.05, 0.5


def arriving(grid: Grid, messages: Iterable[Message], timeout: float | None) -> Iterator[Message]:
    """Send messages, which are not kept, and hand over the replies as they arrive, one at a time.

    Yields:
        Each reply once it is there. What has arrived when the time is up (None: there is no end)
        is handed over even if it takes longer.
    """
    pending = dict.fromkeys(each for each in grid.push_messages(messages) if each)
    del messages
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    pause = SOON
    while pending:
        last, before = time.monotonic() >= deadline, len(pending)
        for message_id in list(pending):
            for reply in grid.pull_messages([message_id]):
                pending.pop(message_id, None)
                yield reply
        if last:
            return
        if len(pending) < before:
            pause = SOON
        else:
            time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
            pause = min(POLL, 2 * pause)


class StreamingGrid(Grid):
    """A grid of Flower's whose ``send_and_receive`` hands over replies as they arrive."""

    def __init__(self, grid: Grid) -> None:
        """Wrap a grid."""
        self._grid = grid

    def set_run(self, run: Any) -> None:
        """See the wrapped grid."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """See the wrapped grid."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """See the wrapped grid."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """See the wrapped grid."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """See the wrapped grid."""
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See the wrapped grid."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See the wrapped grid."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """:func:`arriving`; the messages are sent when the first reply is asked for."""
        return arriving(self._grid, messages, timeout)


def wait_for_nodes(grid: Grid, least: int, timeout: float) -> list[int]:
    """All connected nodes, sorted, once there are enough; an error after so many seconds."""
    deadline = time.monotonic() + timeout
    while len(nodes := sorted(grid.get_node_ids())) < least:
        if time.monotonic() > deadline:
            raise PhaseError(
                f"expected at least {least} connected nodes within {timeout:g} s, got {len(nodes)};"
                " start more SuperNodes, or lower fedsens.key-min-clients or fedsens.groups, which "
                "need fedsens.train-min-clients each"
            )
        time.sleep(min(1.0, timeout / 10))
    return nodes
