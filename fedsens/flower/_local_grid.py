"""LocalGrid: a federation inside one process, for tests, benchmarks and notebooks.

Every message is taken apart and rebuilt as Flower's transport does, so that nothing is shared
between server and clients but bytes. There are no processes, sockets or polls.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any
from uuid import uuid4

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

from fedsens.flower._records import RAISED

SERVER_NODE = 1
Tap = Callable[[Message], None]


class LocalGrid(Grid):
    """Runs a ClientApp for every message to its nodes, in the caller's thread.

    Attributes:
        nodes: node to context; remove one to disconnect it, add one to let it join.
    """

    def __init__(
        self,
        app: ClientApp,
        clients: int,
        *,
        run_id: int = 1,
        node_config: dict[str, Any] | None = None,
        run_config: dict[str, Any] | None = None,
        tap: Tap | None = None,
    ) -> None:
        """Connect nodes.

        Args:
            app: the clients' app.
            clients: how many nodes to connect.
            run_id: the run's number.
            node_config: settings of every node, beside partition-id and num-partitions.
            run_config: the run config that clients see.
            tap: sees every message as it crosses between server and client.
        """
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, SERVER_NODE, 0
        self._app = app
        self._tap = tap
        self._run_id = run_id
        self._run_config = run_config or {}
        self._node_config = node_config or {}
        self._sent: dict[str, Message] = {}
        self.nodes: dict[int, Context] = {}
        for partition in range(clients):
            self.connect(1000 + partition, {"partition-id": partition, "num-partitions": clients})

    def connect(self, node: int, node_config: dict[str, Any]) -> Context:
        """Add a node.

        Args:
            node: its number.
            node_config: its settings, which take precedence over the grid's.

        Returns:
            Its context, whose state lasts from message to message.
        """
        context = Context(
            run_id=self._run_id,
            node_id=node,
            node_config={**self._node_config, **node_config},
            state=RecordDict({"fedsens.unused": ConfigRecord()}),
            run_config=self._run_config,
        )
        self.nodes[node] = context
        return context

    def set_run(self, run: Any) -> None:
        """Not needed: the run is given on construction."""

    @property
    def run(self) -> Any:
        """Not available: a local grid has no SuperLink that knows the run."""
        raise NotImplementedError("a LocalGrid has no run information")

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message (deprecated in Flower; part of its interface)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """The connected nodes."""
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep messages for :meth:`pull_messages`, which runs the clients."""
        sent = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(uuid4())
            message.metadata.__dict__["_run_id"] = self._run_id
            sent.append(message.metadata.message_id)
            self._sent[message.metadata.message_id] = message
        return sent

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Deliver these messages, run the clients and hand over the replies."""
        return [self._deliver(self._sent.pop(each)) for each in message_ids if each in self._sent]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Deliver messages and hand over all replies; nothing is ever late."""
        return self.pull_messages(self.push_messages(messages))

    def _deliver(self, message: Message) -> Message:
        return self._transfer(self.answer(self._transfer(message)))

    def answer(self, message: Message) -> Message:
        """Let a node's app answer a message that has arrived there.

        Args:
            message: the message.

        Returns:
            The reply, an error if the node is not connected or its app raised.
        """
        context = self.nodes.get(message.metadata.dst_node_id)
        if context is None:
            return Message(Error(5, "Node Unavailable"), reply_to=message)
        try:
            return self._app(message, context)
        except Exception as error:  # noqa: BLE001 - as Flower does, with the error's text
            return Message(Error(RAISED, f"{type(error)}:<'{error}'>"), reply_to=message)

    def _transfer(self, message: Message) -> Message:
        contents = {key: item.deflate() for key, item in get_all_nested_objects(message).items()}
        copy = self.rebuild(message.object_id, message.metadata.message_id, contents)
        if self._tap is not None:
            self._tap(copy)
        return copy

    @staticmethod
    def rebuild(object_id: str, message_id: str, contents: dict[str, bytes]) -> Message:
        """Put a message together from what travels.

        Args:
            object_id: of the message itself.
            message_id: by which it is answered.
            contents: object identifier to bytes; emptied on the way.

        Returns:
            The message.
        """
        message = inflate_object_from_contents(object_id, contents)
        assert isinstance(message, Message)
        message.metadata.__dict__["_message_id"] = message_id
        message.metadata.__dict__["_created_at"] = time.time()
        return message
