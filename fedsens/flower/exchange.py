"""One question to many nodes, with a deadline, and who answered what."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from flwr.app import Message, Metadata, RecordDict
from flwr.serverapp import Grid

from fedsens.errors import PhaseError
from fedsens.flower.arrivals import arriving
from fedsens.flower.client import REFUSED
from fedsens.flower.logs import reason_of
from fedsens.flower.records import size_of
from fedsens.protocol.report import Phase, PhaseReport

logger = logging.getLogger(__name__)

UNAVAILABLE = 3  # Flower's ErrorCode.MESSAGE_UNAVAILABLE


@dataclass
class Answers:
    """The outcome of a question.

    Attributes:
        content: node to content of its answer.
        refused: nodes that answered with a named error of fedsens.
        asked: number of nodes that were asked.
        up: plaintext and ciphertext bytes of the answers.
        down: plaintext and ciphertext bytes of the questions.
        seconds: wall time.
        run: the Flower run; 0 where nobody was asked.
    """

    asked: int
    content: dict[int, RecordDict] = field(default_factory=dict)
    refused: set[int] = field(default_factory=set)
    up: tuple[int, int] = (0, 0)
    down: tuple[int, int] = (0, 0)
    seconds: float = 0.0
    run: int = 0


def ask(
    grid: Grid,
    questions: dict[int, RecordDict],
    action: str,
    timeout: float,
    take: Callable[[int, RecordDict], None] | None = None,
) -> Answers:
    """Send a query to nodes and wait for the answers.

    Args:
        grid: Flower's grid.
        questions: node to content.
        action: the query's action name.
        timeout: deadline in seconds; also the messages' time to live, so that a late node does
            not work through a backlog.
        take: what to do with each node's answer as it arrives, instead of keeping its content.

    Returns:
        The answers without errors. Errors are logged with the node's name.
    """
    started = time.monotonic()
    messages = [
        Message(content, dst_node_id=node, message_type=f"query.{action}", ttl=timeout)
        for node, content in questions.items()
    ]
    answers = Answers(len(messages), down=total(message.content for message in messages))
    sent = [message.metadata for message in messages]
    for node, reply in attribute(sent, arriving(grid, messages, timeout), action):
        if reply.has_error():
            reason = reason_of(reply.error)
            logger.warning("node %s did not answer %s: %s", node, action, reason)
            answers.refused |= {node} if reply.error.code == REFUSED else set()
            continue
        answers.up = plus(answers.up, size_of(reply.content))
        if take is None:
            answers.content[node] = reply.content
        else:
            take(node, reply.content)
    answers.run = sent[0].run_id if sent else 0  # known once they are sent
    known = answers.content
    answers.content = {m.dst_node_id: known[m.dst_node_id] for m in sent if m.dst_node_id in known}
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


def attribute(
    sent: Iterable[Metadata], replies: Iterable[Message], what: str
) -> Iterator[tuple[int, Message]]:
    """Attribute replies to nodes by the message they reply to, as they arrive.

    The source of an error reply can be the SuperLink instead of the node. Replies to messages
    that were not sent, and second replies to one message, are dropped. In the end there is a
    warning of every node that was asked and did not answer in time.

    Args:
        sent: metadata of what was sent.
        replies: what comes back.
        what: what the nodes were asked for, for the warning.

    Yields:
        A node and its reply.
    """
    silent: dict[str, Metadata] | None = None
    for reply in replies:
        # Messages get their numbers when they are sent, which is when the first reply is wanted.
        silent = {each.message_id: each for each in sent} if silent is None else silent
        number = reply.metadata.reply_to_message_id
        if number not in silent:
            logger.warning("dropped a reply that answers nothing, or answers twice")
        elif not _tells_the_deadline(reply, silent[number]):
            yield silent.pop(number).dst_node_id, reply
    for each in sent if silent is None else silent.values():
        logger.warning(
            "node %s did not answer %s within %g s; see its log, or raise the deadline",
            each.dst_node_id,
            what,
            each.ttl,
        )


def _tells_the_deadline(reply: Message, asked: Metadata) -> bool:
    """Whether the SuperLink says no more than that the time for an answer is over."""
    expired = time.time() >= asked.created_at + asked.ttl
    return expired and reply.has_error() and reply.error.code == UNAVAILABLE


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
    size = (0, 0)
    for content in contents:
        size = plus(size, size_of(content))
    return size


def plus(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    """Sum of two pairs of plaintext and ciphertext bytes."""
    return one[0] + other[0], one[1] + other[1]
