"""One question to many nodes, with a deadline, and who answered what."""

from __future__ import annotations

import logging
import time
from collections.abc import Container, Iterable
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedsens.errors import PhaseError
from fedsens.flower.logs import reason_of
from fedsens.flower.records import size_of
from fedsens.protocol.report import Phase, PhaseReport

logger = logging.getLogger(__name__)


@dataclass
class Answers:
    """The outcome of a question.

    Attributes:
        content: node to content of its answer.
        asked: number of nodes that were asked.
        up: plaintext and ciphertext bytes of the answers.
        down: plaintext and ciphertext bytes of the questions.
        seconds: wall time.
    """

    asked: int
    content: dict[int, RecordDict] = field(default_factory=dict)
    up: tuple[int, int] = (0, 0)
    down: tuple[int, int] = (0, 0)
    seconds: float = 0.0


def ask(grid: Grid, questions: dict[int, RecordDict], action: str, timeout: float) -> Answers:
    """Send a query to nodes and wait for the answers.

    Args:
        grid: Flower's grid.
        questions: node to content.
        action: the query's action name.
        timeout: deadline in seconds; also the messages' time to live, so that a late node does
            not work through a backlog.

    Returns:
        The answers without errors. Errors are logged with the node's name.
    """
    started = time.monotonic()
    messages = [
        Message(content, dst_node_id=node, message_type=f"query.{action}", ttl=timeout)
        for node, content in questions.items()
    ]
    down = total(message.content for message in messages)
    replies = list(grid.send_and_receive(messages, timeout=timeout)) if messages else []
    answers = Answers(len(messages), down=down)
    attributed = by_node(messages, replies)
    name_the_silent(messages, attributed, action)
    for node, reply in attributed.items():
        if reply.has_error():
            reason = reason_of(reply.error)
            logger.warning("node %s did not answer %s: %s", node, action, reason)
        else:
            answers.content[node] = reply.content
    answers.up = total(answers.content.values())
    answers.seconds = time.monotonic() - started
    return answers


def report_of(
    phase: Phase, server_round: int, answers: Answers, used: int, add_seconds: float = 0.0
) -> PhaseReport:
    """Report a phase that was one question.

    Args:
        phase: the phase.
        server_round: the round.
        answers: the outcome.
        used: usable answers.
        add_seconds: CPU seconds of adding them.

    Returns:
        The report.
    """
    return PhaseReport(
        phase=phase,
        round=server_round,
        clients=used,
        lost=answers.asked - used,
        bytes_up_plain=answers.up[0],
        bytes_up_encrypted=answers.up[1],
        bytes_down_plain=answers.down[0],
        bytes_down_encrypted=answers.down[1],
        seconds=answers.seconds,
        add_seconds=add_seconds,
    )


def by_node(messages: Iterable[Message], replies: Iterable[Message]) -> dict[int, Message]:
    """Attribute replies to nodes by the message they reply to.

    The source of an error reply can be the SuperLink instead of the node. Replies to messages
    that were not sent, and second replies to one message, are dropped.

    Args:
        messages: what was sent.
        replies: what came back.

    Returns:
        Node to its reply, in the order of the messages, so that floating-point sums do not depend
        on who answers first.
    """
    sent = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
    order, attributed = list(sent.values()), dict[int, Message]()
    for reply in replies:
        node = sent.pop(reply.metadata.reply_to_message_id, None)
        if node is None:
            logger.warning("dropped a reply that answers nothing, or answers twice")
        else:
            attributed[node] = reply
    return {node: attributed[node] for node in order if node in attributed}


def name_the_silent(messages: Iterable[Message], answered: Container[int], what: str) -> None:
    """Warn of every node that was asked and did not answer in time.

    Args:
        messages: what was sent.
        answered: the nodes that answered.
        what: what they were asked for.
    """
    for message in messages:
        if message.metadata.dst_node_id not in answered:
            logger.warning(
                "node %s did not answer %s within %g s; see its log, or raise the deadline",
                message.metadata.dst_node_id,
                what,
                message.metadata.ttl,
            )


def wait_for_nodes(grid: Grid, least: int, timeout: float) -> list[int]:
    """Wait until enough nodes are connected.

    Args:
        grid: Flower's grid.
        least: how many nodes are needed.
        timeout: deadline in seconds.

    Returns:
        All connected nodes, sorted.

    Raises:
        PhaseError: too few nodes connected in time.
    """
    deadline = time.monotonic() + timeout
    while len(nodes := sorted(grid.get_node_ids())) < least:
        if time.monotonic() > deadline:
            raise PhaseError(
                f"expected at least {least} connected nodes within {timeout:g} s, got {len(nodes)};"
                " start more SuperNodes or lower fedsens.key-min-clients"
            )
        time.sleep(min(1.0, timeout / 10))
    return nodes


def total(contents: Iterable[RecordDict]) -> tuple[int, int]:
    """Sum of the plaintext and ciphertext bytes of several contents."""
    sizes = [size_of(content) for content in contents]
    return sum(plain for plain, _ in sizes), sum(encrypted for _, encrypted in sizes)
