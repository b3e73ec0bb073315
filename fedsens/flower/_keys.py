"""Key agreement, the server's half: it finds out who holds the key and relays envelopes."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable

from flwr.app import ConfigRecord, RecordDict
from flwr.serverapp import Grid

from fedsens.crypto import CkksParameters
from fedsens.errors import ProtocolError
from fedsens.flower.exchange import Answers, ask
from fedsens.flower.records import (
    ENVELOPES,
    KEYS_ACTION,
    bytes_to_record,
    put_header,
    take_header,
)
from fedsens.protocol.examples import planned
from fedsens.protocol.headers import KeyReply, KeyRequest
from fedsens.protocol.report import PhaseReport

logger = logging.getLogger(__name__)

ATTEMPTS = 3  # clients that are tried in turn where one of them must do something


class KeyAgreement:
    """Which nodes hold the federation's key, as far as the server knows.

    Attributes:
        fingerprint: of the key; empty until the first client holds one.
        generation: how often the key has been rotated.
        examples: node to number of training examples, for every node that holds the key.
    """

    def __init__(
        self,
        parameters: CkksParameters,
        timeout: float,
        fingerprint: str = "",
        generation: int = 0,
    ) -> None:
        """Start without knowing anybody.

        Args:
            parameters: CKKS parameters that the key must cover.
            timeout: deadline of each step in seconds.
            fingerprint: of the key, if it must be a certain one.
            generation: how often the key has been rotated.
        """
        self.fingerprint = fingerprint
        self.generation = generation
        self.examples: dict[int, int] = {}
        self._parameters = parameters
        self._timeout = timeout
        self._public: dict[int, str] = {}
        self._capped: dict[int, int] = {}

    def agree(self, grid: Grid, nodes: Iterable[int], server_round: int) -> PhaseReport | None:
        """Bring every node that can be reached into the possession of the key.

        Args:
            grid: Flower's grid.
            nodes: nodes to include; those known to hold the key are not asked again.
            server_round: for the report.

        Returns:
            What it cost, or None if there was nothing to do.
        """
        unknown = [node for node in nodes if node not in self.examples]
        if not unknown:
            return None
        known = bool(self.fingerprint)
        hello = self._request("hello", fingerprint=self.fingerprint)
        steps = [self._step(grid, dict.fromkeys(unknown, hello))]
        newcomers = self._greet(steps[0])
        if self.fingerprint:
            steps += self._pass_on(grid, newcomers, set())
            if not known:
                self._doubt(newcomers)
        if newcomers and not self.fingerprint:
            steps += self._create(grid, newcomers)
        return PhaseReport(
            phase="keys",
            round=server_round,
            clients=sum(node in self.examples for node in unknown),
            lost=sum(node not in self.examples for node in unknown),
            bytes_up_plain=sum(step.up[0] for step in steps),
            bytes_down_plain=sum(step.down[0] for step in steps),
            seconds=sum(step.seconds for step in steps),
        )

    def learn(self, node: int, examples: float) -> None:
        """Trust the number of examples that a client trained on over what it announced."""
        if node in self.examples:
            self.examples[node] = round(examples)

    def reference(self, nodes: Iterable[int]) -> float:
        """N_ref of a round: the examples of its clients, without what somebody overstates.

        The weights n_i / N_ref of whoever answers then add up to at most 1, unless a client trains
        on more examples than it announced, or than :func:`planned` believes it.

        Args:
            nodes: the clients; all hold the key.

        Returns:
            A positive number.
        """
        counts, nodes = planned(self.examples), list(nodes)
        for node in nodes:
            announced = self.examples[node]
            if counts[node] < announced and self._capped.get(node) != announced:
                self._capped[node] = announced
                logger.warning(
                    "node %s announces %d examples, far more than the others; they count as %d, "
                    "and it is left out if it really trains on more than twice the total",
                    node,
                    announced,
                    counts[node],
                )
        return float(sum(counts[node] for node in nodes)) or 1.0

    def forget(self, node: int) -> None:
        """Ask this node again next time: it failed, so it may have lost its key."""
        self.examples.pop(node, None)

    def _request(self, step: str, **fields: object) -> KeyRequest:
        given = {"step": step, "parameters": self._parameters, "generation": self.generation}
        return KeyRequest.model_validate({**given, **fields})

    def _step(self, grid: Grid, requests: dict[int, KeyRequest]) -> Answers:
        questions = {node: RecordDict() for node in requests}
        for node, request in requests.items():
            put_header(questions[node], request)
        return ask(grid, questions, KEYS_ACTION, self._timeout)

    def _greet(self, answers: Answers) -> dict[int, KeyReply]:
        replies = _headers(answers)
        holding = Counter(reply.fingerprint for reply in replies.values() if reply.fingerprint)
        if not self.fingerprint and holding:
            self.fingerprint = holding.most_common(1)[0][0]
        newcomers = {}
        for node, reply in sorted(replies.items()):
            self._public[node] = reply.public_key
            if reply.fingerprint == "":
                newcomers[node] = reply
            elif reply.fingerprint == self.fingerprint:
                self.examples[node] = reply.examples
            else:
                logger.warning(
                    "node %s holds the key %s, expected %s; it is left out until it has that key",
                    node,
                    reply.fingerprint,
                    self.fingerprint,
                )
        return newcomers

    def _doubt(self, newcomers: dict[int, KeyReply]) -> None:
        """Start over if most have no key, and whoever says it holds one gave it to none of them."""
        holders = sorted(set(self.examples) - set(newcomers))
        if len(newcomers) > len(holders) and not set(newcomers) & set(self.examples):
            logger.warning(
                "nodes %s say they hold the key %s, but gave it to none of %d others, who agree on "
                "one of their own; give all clients the same key file, or none",
                holders,
                self.fingerprint,
                len(newcomers),
            )
            self._start_over()

    def _start_over(self) -> None:
        self.fingerprint = ""
        self.examples.clear()

    def _create(self, grid: Grid, newcomers: dict[int, KeyReply]) -> list[Answers]:
        """Let one newcomer create the key; if nobody can open what it hands out, let another."""
        steps = []
        for creator in list(newcomers)[:ATTEMPTS]:
            steps.append(shared := self._share(grid, creator, newcomers, create=True))
            if creator not in self.examples:
                continue
            delivered, waiting = self._deliver(grid, newcomers, shared)
            steps.append(delivered)
            if not waiting or len(self.examples) > 1:
                return steps + self._pass_on(grid, waiting, {creator})
            logger.warning("node %s made a key that nobody else came to hold", creator)
            self._start_over()
        return steps

    def _pass_on(
        self, grid: Grid, newcomers: dict[int, KeyReply], tried: set[int]
    ) -> list[Answers]:
        """Hand the key to newcomers; those to whom one holder gives none get it from the next."""
        steps, waiting = list[Answers](), newcomers
        while waiting and len(tried) < ATTEMPTS:
            holders = [node for node in self.examples if self._public.get(node)]
            sharer = next((node for node in holders if node not in tried), None)
            if sharer is None:
                break
            tried.add(sharer)
            shared = self._share(grid, sharer, waiting, create=False)
            delivered, waiting = self._deliver(grid, waiting, shared)
            steps += [shared, delivered]
        return steps

    def _share(
        self, grid: Grid, sharer: int, newcomers: dict[int, KeyReply], create: bool
    ) -> Answers:
        request = self._request("share", roster=_roster(newcomers, sharer), create=create)
        answers = self._step(grid, {sharer: request})
        reply = _headers(answers).get(sharer)
        if reply and reply.fingerprint and self.fingerprint in {"", reply.fingerprint}:
            self.fingerprint = reply.fingerprint
            self.examples[sharer] = reply.examples
        else:
            logger.warning("node %s could not share the key; trying another, see its log", sharer)
            answers.content.clear()
        return answers

    def _deliver(
        self, grid: Grid, newcomers: dict[int, KeyReply], shared: Answers
    ) -> tuple[Answers, dict[int, KeyReply]]:
        """Hand out envelopes; also returns the newcomers who are there, but got none that opens."""
        questions: dict[int, RecordDict] = {}
        for sharer, content in shared.content.items():
            envelopes = content.config_records.get(ENVELOPES, ConfigRecord())
            roster = _roster(newcomers, sharer)
            for node in newcomers:
                envelope = envelopes.get(str(node))
                if isinstance(envelope, bytes):
                    questions[node] = RecordDict({ENVELOPES: bytes_to_record(envelope)})
                    sender = self._public[sharer]
                    request = self._request("accept", sender=sender, roster=roster)
                    put_header(questions[node], request)
        answers = ask(grid, questions, KEYS_ACTION, self._timeout)
        for node, reply in _headers(answers).items():
            if reply.fingerprint == self.fingerprint:
                self.examples[node] = reply.examples
        silent = set(questions) - set(answers.content) - answers.refused
        unserved = set(newcomers) - set(self.examples) - silent
        return answers, {node: newcomers[node] for node in newcomers if node in unserved}


def _roster(newcomers: dict[int, KeyReply], sharer: int) -> dict[int, str]:
    return {node: reply.public_key for node, reply in newcomers.items() if node != sharer}


def _headers(answers: Answers) -> dict[int, KeyReply]:
    headers = {}
    for node, content in answers.content.items():
        try:
            headers[node] = take_header(content, KeyReply)
        except ProtocolError as error:
            logger.warning("node %s answered key agreement wrongly: %s", node, error)
    return headers
