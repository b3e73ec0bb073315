"""SoakGrid: a federation in one process whose clients misbehave as a schedule says."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path

from flwr.app import Error, Message, RecordDict
from flwr.clientapp import ClientApp

from experiments.soak.hostile import change_of, cut_map, wrong_key
from experiments.soak.schedule import (
    AWAY,
    HOSTILE,
    NO_KEY,
    TWICE,
    WRONG_KEY,
    WRONG_TAG,
    Schedule,
)
from fedsens import CkksParameters
from fedsens.flower import LocalGrid
from fedsens.flower._records import KEY_SUM_ACTION, SENSITIVITY_ACTION

UNAVAILABLE = 5  # Flower's ErrorCode.NODE_UNAVAILABLE
FIRST_NODE = 1000


class SoakGrid(LocalGrid):
    """Runs honest apps and changes what some of them answer.

    Attributes:
        round: the current round.
        asked: nodes that were asked to train in it.
    """

    def __init__(
        self,
        app: ClientApp,
        clients: int,
        total: int,
        schedule: Schedule,
        parameters: CkksParameters,
        state: Path,
    ) -> None:
        """Connect the first clients.

        Args:
            app: the clients' app.
            clients: how many to connect.
            total: how many there will be; each has its share of the data.
            schedule: who misbehaves.
            parameters: of the ciphertexts.
            state: the clients' state folder.
        """
        own = {"fedsens-state-dir": str(state), "fedsens-min-contributors": 2}
        super().__init__(app, 0, node_config=own)
        self.round, self.asked = 1, set[int]()
        self._schedule, self._parameters, self._total = schedule, parameters, total
        self._last: dict[int, RecordDict] = {}  # a node's last honest answer
        self.join(clients)

    def join(self, clients: int) -> None:
        """Connect further clients, until all are there."""
        for number in range(len(self.nodes), min(len(self.nodes) + clients, self._total)):
            config = {"partition-id": number, "num-partitions": self._total}
            self.connect(FIRST_NODE + number, config)

    def next_round(self) -> None:
        """Go on to the next round."""
        self.round += 1
        self.asked.clear()

    def fault_of(self, node: int) -> str | None:
        """What is wrong with a node in this round."""
        return self._schedule.of(self.round, node)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Deliver messages; some answers come twice."""
        for reply in super().pull_messages(message_ids):
            metadata = reply.metadata
            twice = (
                metadata.message_type == "train" and self.fault_of(metadata.src_node_id) == TWICE
            )
            yield from (reply, deepcopy(reply)) if twice and reply.has_content() else (reply,)

    def answer(self, message: Message) -> Message:
        """Let a node's app answer, honestly or not."""
        node, kind = message.metadata.dst_node_id, message.metadata.message_type
        fault = self.fault_of(node)
        if kind == "train":
            self.asked.add(node)
        # The keys of maps are asked for before training; without them a first mask is not made.
        no_key = fault == NO_KEY and node in self.asked and kind == f"query.{KEY_SUM_ACTION}"
        if fault == AWAY or no_key:
            return Message(Error(UNAVAILABLE, "Node Unavailable"), reply_to=message)
        reply = super().answer(message)
        if (
            fault == "cut ciphertext"
            and kind == f"query.{SENSITIVITY_ACTION}"
            and reply.has_content()
        ):
            cut_map(reply.content)
        if fault == WRONG_KEY and kind == f"query.{KEY_SUM_ACTION}" and reply.has_content():
            wrong_key(reply.content)
        if kind == "train" and reply.has_content():
            self._meddle(reply.content, node, fault)
        return reply

    def _meddle(self, content: RecordDict, node: int, fault: str | None) -> None:
        if fault == "replayed answer" and node in self._last:
            last = deepcopy(self._last[node])
            content.clear()
            content.update(last)
        elif fault in {*HOSTILE, WRONG_TAG}:  # who has not answered yet has nothing to replay
            kind = "another context" if fault == "replayed answer" else fault
            change_of(str(kind), self._parameters)(content)
        else:
            self._last[node] = deepcopy(content)
