"""Phase: one question to many nodes with a deadline, who answered what, and what it cost."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, NoReturn, TypeVar

from flwr.app import Message, Metadata, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedsens.errors import FedSensError, PhaseError, StrategyError
from fedsens.flower._grid import arriving
from fedsens.flower._logs import reason_of
from fedsens.flower._records import (
    LIST_REFUSED,
    MODEL_REFUSED,
    REFUSED,
    base_digest,
    size_of,
)
from fedsens.protocol import Kind, ModelHeader, PhaseReport, RoundContext
from fedsens.protocol import Phase as PhaseName

logger = logging.getLogger(__name__)

UNAVAILABLE = 3  # Flower's ErrorCode.MESSAGE_UNAVAILABLE
LISTED = 8  # reasons that an error tells
ATTEMPTS = 3  # clients that are tried in turn where one of them must do something
T = TypeVar("T")
Bytes = tuple[int, int]  # plaintext and encrypted


@dataclass
class Phase:
    """One question to many nodes.

    Attributes:
        name: which phase of a round.
        round: the server round.
        what: what the nodes are asked for, in words.
        sent: metadata of the messages.
        header: what was said about the model that was sent; None where there was none.
        base: digest of all that was sent, the same for all nodes; empty without a model.
        down: bytes of the messages.
        up: bytes of the answers so far.
        errors: node to error reply.
        accepted: nodes that answered with more than an error.
        groups: the phases of the groups of clients that are summed apart; empty without groups.
    """

    name: PhaseName
    round: int
    what: str
    sent: list[Metadata]
    header: ModelHeader | None = None
    base: str = ""
    down: Bytes = (0, 0)
    up: Bytes = (0, 0)
    errors: dict[int, Message] = field(default_factory=dict)
    accepted: int = 0
    groups: tuple[Phase, ...] = ()
    _started: float = field(default_factory=time.monotonic)

    @classmethod
    def of(
        cls,
        name: PhaseName,
        server_round: int,
        what: str,
        messages: list[Message],
        header: ModelHeader | None = None,
    ) -> Phase:
        """The phase that some messages begin.

        Args:
            name: which phase.
            server_round: the round.
            what: what the nodes are asked for, in words.
            messages: complete, about to be sent.
            header: that they carry.

        Returns:
            The phase.

        Raises:
            StrategyError: the nodes would be told different things, but must upload alike.
        """
        contents = {id(message.content): message.content for message in messages}
        bases = {base_digest(each) for each in contents.values()} if header is not None else set()
        if header is not None and header.cohort and len(bases) > 1:
            raise StrategyError(
                "expected one content for all clients of a round, because uploads are bound to "
                f"what the clients were told, got {len(bases)} different ones; put what differs "
                "into the clients' node config"
            )
        return cls(
            name,
            server_round,
            what,
            [message.metadata for message in messages],
            header,
            min(bases, default=""),
            total(message.content for message in messages),
        )

    @classmethod
    def joined(cls, groups: Sequence[Phase]) -> Phase:
        """The phase of several groups of clients, which are told different cohorts."""
        return cls(
            groups[0].name,
            groups[0].round,
            groups[0].what,
            [each for group in groups for each in group.sent],
            groups[0].header,
            down=(sum(group.down[0] for group in groups), sum(group.down[1] for group in groups)),
            groups=tuple(groups),
        )

    @property
    def parts(self) -> tuple[Phase, ...]:
        """The groups, or this phase itself where there are none."""
        return self.groups or (self,)

    def replies(self, replies: Iterable[Message]) -> Iterator[tuple[int, Message]]:
        """Match replies with nodes as they arrive, errors included, and count their bytes.

        Args:
            replies: what comes back.

        Yields:
            A node and its reply. Nodes that are lost are logged by name.
        """
        for node, reply in match_replies(self.sent, replies, self.what):
            if reply.has_error():
                self.errors[node] = reply
                logger.warning(
                    "node %s is lost for %s: %s", node, self.what, reason_of(reply.error)
                )
            else:
                self.accepted += 1
                self.up = plus(self.up, size_of(reply.content))
            yield node, reply

    def sort_by_request(self, answers: Mapping[int, T]) -> list[T]:
        """Answers in the order of the messages, so that sums do not depend on who is first."""
        return [answers[each.dst_node_id] for each in self.sent if each.dst_node_id in answers]

    @property
    def run(self) -> str:
        """The Flower run, known once messages have been sent; 0 where nobody was asked."""
        return str(self.sent[0].run_id if self.sent else 0)

    def context(self, kind: Kind) -> RoundContext:
        """What the uploads that answer this phase are bound to."""
        assert self.header is not None
        return self.header.context(kind, self.run, self.base)

    def refused(self, *codes: int) -> set[int]:
        """Nodes that answered with a named error of fedsens, or with one of some codes."""
        wanted = codes or (REFUSED, MODEL_REFUSED, LIST_REFUSED)
        return {node for node, reply in self.errors.items() if reply.error.code in wanted}

    def reasons(self) -> dict[int, str]:
        """Node to why it has no answer, in words."""
        return {node: reason_of(reply.error) for node, reply in self.errors.items()}

    def model_is_refused(self, least: int) -> bool:
        """Whether clients refuse the model that was sent, or its list of contributors.

        It is accepted by ``least`` clients or half of those who say so, whichever is fewer: one
        client that deviates neither blocks a model nor saves it, not even where it alone answers.

        Args:
            least: clients that a round needs.

        Returns:
            Whether the run must go back to an earlier model.
        """
        refusals = len(self.refused(MODEL_REFUSED, LIST_REFUSED))
        return refusals >= min(2, least) and self.accepted < min(
            least, (self.accepted + refusals) / 2
        )

    def model_is_safe(self, least: int) -> bool:
        """Whether so many accepted the model that :meth:`model_is_refused` will not be true.

        Args:
            least: clients that a round needs.

        Returns:
            Whether the model before it can be let go while further answers arrive.
        """
        return self.accepted >= max(min(2, least), min(least, len(self.sent) / 2))

    def stop(self, folder: Path | None) -> NoReturn:
        """End a run whose model is refused and that cannot go back.

        Args:
            folder: of the checkpoints, if there are any.

        Raises:
            PhaseError: says how to go back to the model before.
        """
        refusals = self.refused(MODEL_REFUSED, LIST_REFUSED)
        made = self.header.model_round if self.header is not None else 0
        remedy = (
            f"delete round-{made:06d}.safetensors in {folder} and resume the run from the "
            "checkpoint before it"
            if folder is not None
            else "start anew, with fedsens.checkpoint-dir to be able to go back"
        )
        raise PhaseError(
            f"expected clients to accept the model of round {made} in the {self.what}, got "
            f"{len(refusals)} refusals, the first: "
            f"{reason_of(self.errors[min(refusals)].error)}; {remedy}"
        )

    def report(
        self,
        clients: int,
        *,
        lost: int | None = None,
        refused: int = 0,
        metrics: MetricRecord | None = None,
        epsilon: float | None = None,
        seconds: Mapping[str, float] | None = None,
        reasons: Mapping[int, str] | None = None,
        encrypted: int = 0,
        central: tuple[float | None, float | None] = (None, None),
        probed: int = 0,
        warnings: Iterable[str] = (),
    ) -> PhaseReport:
        """What the phase cost.

        Args:
            clients: usable answers.
            lost: nodes that gave none; by default all others that were asked.
            refused: answers that were left out as wrong.
            metrics: the inner strategy's.
            epsilon: privacy cost of the plaintext remainder so far.
            seconds: CPU seconds of encrypting, adding and decrypting.
            reasons: node to why its answer was left out, beside those that answered with an error.
            encrypted: parameters of an answer that are encrypted.
            central: noise multiplier of the mean, and epsilon of all means so far.
            probed: maps that random probes estimate.
            warnings: what a user of the run should mend.

        Returns:
            The report.
        """
        values = metrics.items() if metrics is not None else ()
        return PhaseReport(
            phase=self.name,
            round=self.round,
            clients=clients,
            lost=len(self.sent) - clients if lost is None else lost,
            refused=refused,
            reasons=dict(sorted({**self.reasons(), **(reasons or {})}.items())[:LISTED]),
            bytes_up_plain=self.up[0],
            bytes_up_encrypted=self.up[1],
            bytes_down_plain=self.down[0],
            bytes_down_encrypted=self.down[1],
            seconds=time.monotonic() - self._started,
            metrics={k: v for k, v in values if isinstance(v, int | float)},
            epsilon=epsilon,
            encrypted_parameters=encrypted,
            opens=self.header.opens if self.header is not None and encrypted else None,
            noise_multiplier=central[0],
            central_epsilon=central[1],
            probed_maps=probed,
            warnings=list(warnings),
            **(seconds or {}),
        )

    def extend(self, other: Phase) -> None:
        """Take a later question of the same kind as a part of this phase."""
        self.absorb(other)
        self.sent += other.sent
        self.errors |= other.errors

    def absorb(self, other: Phase) -> None:
        """Count the bytes of a question that belongs to this phase."""
        self.up, self.down = plus(self.up, other.up), plus(self.down, other.down)


def ask(
    grid: Grid,
    phase: tuple[PhaseName, int],
    questions: Mapping[int, RecordDict],
    action: str,
    timeout: float,
    take: Callable[[Phase, int, RecordDict], None] | None = None,
    header: ModelHeader | None = None,
) -> tuple[Phase, dict[int, RecordDict]]:
    """Send a query to nodes; the phase, and each node's answer in the order of the questions.

    The timeout is also the messages' time to live, so that a late node does not work through a
    backlog. ``take`` gets each answer as it arrives, instead of its content being kept. ``header``
    is that of the model in the contents, where there is one.
    """
    messages = [
        Message(content, dst_node_id=node, message_type=f"query.{action}", ttl=timeout)
        for node, content in questions.items()
    ]
    asked = Phase.of(*phase, action, messages, header)
    kept: dict[int, RecordDict] = {}
    for node, reply in asked.replies(arriving(grid, messages, timeout)):
        if reply.has_error():
            continue
        if take is None:
            kept[node] = reply.content
        else:
            take(asked, node, reply.content)
    return asked, {node: kept[node] for node in questions if node in kept}


@dataclass
class Agreement(Generic[T]):
    """What nodes answer that are asked one after another.

    Attributes:
        phase: the questions, for the report.
        answer: that of two, or of the only node; None where no two agree.
        found: node to its answer.
        reasons: node to why it gave none.
    """

    phase: Phase
    answer: T | None = None
    found: dict[int, T] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)


def ask_until_two_agree(
    grid: Grid,
    phase: tuple[PhaseName, int],
    nodes: Sequence[int],
    question: Callable[[], RecordDict],
    action: str,
    timeout: float,
    read: Callable[[RecordDict], T],
    failed: str,
) -> Agreement[T]:
    """Ask nodes one after another until two answer alike, since one alone could choose the answer.

    A wrong answer more costs one question more, and stops no run; of nodes that give none,
    ``ATTEMPTS`` are tried. ``read`` raises where an answer is none, and ``failed`` says so in the
    log.
    """
    all_asked = Agreement[T](Phase.of(*phase, action, []))
    for node in nodes:
        if len(all_asked.reasons) == ATTEMPTS:
            break
        asked, answers = ask(grid, phase, {node: question()}, action, timeout)
        all_asked.phase.extend(asked)
        try:
            answer = read(answers.get(node, RecordDict()))
        except FedSensError as error:
            all_asked.reasons[node] = why = asked.reasons().get(node, str(error))
            logger.warning("node %s %s: %s; trying another", node, failed, why)
            continue
        if answer in all_asked.found.values() or len(nodes) == 1:
            all_asked.answer = answer
        all_asked.found[node] = answer
        if all_asked.answer is not None:
            break
    return all_asked


def listed(reasons: Mapping[int, str]) -> str:
    """What nodes gave as reasons, in one line; a reason that several gave once."""
    alike: dict[str, list[int]] = {}
    for node in sorted(reasons):
        alike.setdefault(reasons[node], []).append(node)
    told = []
    for reason, (first, *rest) in alike.items():
        others = f" (and {len(rest)} more node{'s' if len(rest) > 1 else ''})" if rest else ""
        told.append(f"node {first}: {reason}{others}")
    more = [f"and {len(told) - LISTED} other reasons"] if len(told) > LISTED else []
    return "; ".join([*told[:LISTED], *more]) or "no answer came in time"


def match_replies(
    sent: Iterable[Metadata], replies: Iterable[Message], what: str
) -> Iterator[tuple[int, Message]]:
    """Match replies with nodes by the message they reply to, as they arrive.

    The source of an error reply can be the SuperLink instead of the node. Replies to messages that
    were not sent, and second replies to one message, are dropped. In the end there is a warning of
    every node that was asked and did not answer in time.

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


def total(contents: Iterable[RecordDict]) -> Bytes:
    """Sum of the plaintext and encrypted bytes of several contents."""
    size = (0, 0)
    for content in contents:
        size = plus(size, size_of(content))
    return size


def plus(one: Bytes, other: Bytes) -> Bytes:
    """Sum of two pairs of plaintext and encrypted bytes."""
    return one[0] + other[0], one[1] + other[1]
