"""Key agreement: who holds the federation's key K, and how it reaches those who do not.

One client makes K and seals it to every other one's public key; the server relays the envelopes
and cannot open them. Every client also names its identity P and the one that it made for this run,
E, by which contributors pad their one-time secrets.
"""

from __future__ import annotations

import logging
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from flwr.app import ConfigRecord, RecordDict
from flwr.serverapp import Grid

from fedsens.config import EXAMPLES_CAP
from fedsens.crypto import Opens
from fedsens.errors import ProtocolError
from fedsens.flower._phase import ATTEMPTS, Phase, ask
from fedsens.flower._records import (
    ENVELOPES,
    KEYS_ACTION,
    bytes_to_record,
    put_header,
    record_to_bytes,
    take_header,
)
from fedsens.protocol import KeyReply, KeyRequest, Party, PhaseReport
from fedsens.protocol import Phase as PhaseName

if TYPE_CHECKING:
    from fedsens.flower._client import Client

logger = logging.getLogger(__name__)

NO_KEY: Final = (
    "holds no key; left out, until it has the key file of the others or takes part in key agreement"
)
KEYLESS: Final = (
    "has not said hello; left out, until it does and its owner lets the server open the mean"
)
CAP_BUDGET: Final = 16  # times the cap, for all clients above it together
ALIKE: Final = 0.1  # of a number of examples; a loader that drops the last batch is within


class KeyAgreement:
    """Which nodes hold the federation's key, as far as the server knows.

    Attributes:
        fingerprint: of the key; empty until the first client holds one.
        key_index: how often the key has been rotated.
        examples: node to number of training examples, for every node that holds the key.
        parties: node to its identities, of every node that has said hello.
        reasons: node to why it came to no key.
        misstated: node to the number of examples that it announced and to the one that it first
            trained on, where these are not alike.
    """

    def __init__(
        self,
        timeout: float,
        fingerprint: str = "",
        key_index: int = 0,
        cap: int = EXAMPLES_CAP,
        opens: Opens = "clients",
    ) -> None:
        """Start without knowing anybody.

        Numbers of examples stand up to ``cap`` times their median. Where the server opens sums,
        nobody needs a key: clients are asked for their identities alone, and refuse where their
        owners have not allowed it.
        """
        self.fingerprint = fingerprint
        self._cap, self._opens = cap, opens
        self.key_index = key_index
        self.examples: dict[int, int] = {}
        self.parties: dict[int, Party] = {}
        self.reasons: dict[int, str] = {}
        self.misstated: dict[int, tuple[int, int]] = {}
        self._provisioned: set[int] = set()
        self._trained: set[int] = set()
        self._timeout = timeout
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
        # 1. Everybody says who it is and which key it holds.
        steps = _Steps(grid, server_round, self._timeout)
        hello = self._request("hello", fingerprint=self.fingerprint)
        replies = steps.ask(dict.fromkeys(unknown, hello))
        keyless = self._opens == "server"
        newcomers = {} if keyless else self._collect_hello(replies)
        for node, reply in replies.items() if keyless else ():
            self._meet(node, reply)
            self.examples[node] = reply.examples
        # 2. Whoever holds the key hands it on to those who hold none, sealed to each.
        if self.fingerprint:
            self._pass_on(steps, newcomers, set())
            if not known:  # the key is somebody's word, which nobody may be able to keep
                self._reject_minority(newcomers)
        # 3. Where nobody does, one of them makes it.
        if newcomers and not self.fingerprint:
            self._create(steps, newcomers)
        self.reasons |= steps.reasons
        reached = sum(node in self.examples for node in unknown)
        return steps.report(reached, len(unknown) - reached)

    def update_examples(self, node: int, examples: float) -> None:
        """Trust the number of examples that a client trained on over what it announced."""
        if node not in self.examples:
            return
        announced, trained = self.examples[node], round(examples)
        if node not in self._trained and abs(trained - announced) > ALIKE * announced:
            self.misstated[node] = announced, trained
        self._trained.add(node)
        self.examples[node] = trained

    def reference(self, nodes: Iterable[int]) -> float:
        """N_ref of a round: the examples of its clients, without what somebody overstates.

        The weights n_i / N_ref of whoever answers then add up to at most 1, unless a client trains
        on more examples than it announced, or than :func:`capped_examples` believes it.
        """
        counts, nodes = capped_examples(self.examples, self._cap), list(nodes)
        for node in nodes:
            announced = self.examples[node]
            if counts[node] < announced and self._capped.get(node) != announced:
                self._capped[node] = announced
                logger.warning(
                    "node %s announces %d examples, more than %d times the median; they count as "
                    "%d, which protects the precision of the others' values, and it is left out "
                    "if it really trains on more than twice the total; if it does, raise "
                    "fedsens.examples-cap, and fedsens.preset for the precision",
                    node,
                    announced,
                    self._cap,
                    counts[node],
                )
        return float(sum(counts[node] for node in nodes)) or 1.0

    def distinct(self, nodes: Iterable[int], connected: Iterable[int]) -> list[int]:
        """Nodes with the key and an identity of their own; others are named in the log."""
        # Of two that claim one identity it is theirs who said so first and is still there.
        present, owners, chosen = set(connected), dict[str, int](), list[int]()
        for node, party in self.parties.items():
            if node in present:
                owners.setdefault(party.name, node)
        for node in nodes:
            if node not in self.examples:
                logger.warning("node %s %s", node, KEYLESS if self._opens == "server" else NO_KEY)
            elif (first := owners.get(self.parties[node].name, node)) != node:
                logger.warning(
                    "nodes %s and %s have one identity; the second is left out: give every client "
                    "an identity file of its own",
                    first,
                    node,
                )
            else:
                chosen.append(node)
        return chosen

    def invalidate(self, node: int) -> None:
        """Ask this node again next time: it failed, so it may have lost its key."""
        self.examples.pop(node, None)

    def _request(self, step: str, **fields: object) -> KeyRequest:
        common = {"step": step, "key_index": self.key_index, "opens": self._opens}
        return KeyRequest.model_validate(common | fields)

    def _meet(self, node: int, reply: KeyReply) -> None:
        """Note who a node says it is, in the order in which each first said so."""
        if node in self.parties and self.parties[node].name != reply.name:
            del self.parties[node]
        self.parties[node] = Party(name=reply.name, run_key=reply.run_key)

    def _collect_hello(self, replies: dict[int, KeyReply]) -> dict[int, KeyReply]:
        """Note who holds which key; returns those who hold none."""
        # The key of most is the federation's, unless the operator has named one.
        holding = Counter(reply.fingerprint for reply in replies.values() if reply.fingerprint)
        if not self.fingerprint and holding:
            self.fingerprint = holding.most_common(1)[0][0]
        newcomers = {}
        for node, reply in sorted(replies.items()):
            self._meet(node, reply)
            if reply.provisioned:
                self._provisioned.add(node)
            if reply.fingerprint == "":
                newcomers[node] = reply
            elif reply.fingerprint == self.fingerprint:
                self.examples[node] = reply.examples
            else:
                self.reasons[node] = f"holds the key {reply.fingerprint}"
                logger.warning(
                    "node %s holds the key %s, expected %s; it is left out until it has that key",
                    node,
                    reply.fingerprint,
                    self.fingerprint,
                )
        return newcomers

    def _reject_minority(self, newcomers: dict[int, KeyReply]) -> None:
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

    def _create(self, steps: _Steps, newcomers: dict[int, KeyReply]) -> None:
        """Let one newcomer create the key; if nobody can open what it hands out, let another."""
        for creator in list(newcomers)[:ATTEMPTS]:
            shared = self._share(steps, creator, newcomers, create=True)
            if creator not in self.examples:
                continue  # it answered with no key: the next one makes it
            waiting = self._deliver(steps, newcomers, shared)
            if not waiting or len(self.examples) > 1:
                self._pass_on(steps, waiting, {creator})
                return
            logger.warning("node %s made a key that nobody else came to hold", creator)
            self._start_over()

    def _pass_on(self, steps: _Steps, newcomers: dict[int, KeyReply], tried: set[int]) -> None:
        """Hand the key to newcomers; those to whom one holder gives none get it from the next."""
        waiting = newcomers
        while waiting and len(tried) < ATTEMPTS:
            # Owners who have laid a key file beside their client hand it on themselves.
            holders = [node for node in self.examples if node not in self._provisioned]
            sharer = next((node for node in holders if node not in tried), None)
            if sharer is None:
                return
            tried.add(sharer)
            shared = self._share(steps, sharer, waiting, create=False)
            waiting = self._deliver(steps, waiting, shared)

    def _share(
        self, steps: _Steps, sharer: int, newcomers: dict[int, KeyReply], create: bool
    ) -> dict[int, ConfigRecord]:
        """Ask one client for envelopes; returns them by sharer, nothing where it gave none."""
        request = self._request("share", roster=_roster(newcomers, sharer), create=create)
        reply = steps.ask({sharer: request}).get(sharer)
        if reply and reply.fingerprint and self.fingerprint in {"", reply.fingerprint}:
            self.fingerprint = reply.fingerprint
            self.examples[sharer] = reply.examples
            content = steps.contents[sharer]
            return {sharer: content.config_records.get(ENVELOPES, ConfigRecord())}
        logger.warning("node %s could not share the key; trying another, see its log", sharer)
        return {}

    def _deliver(
        self, steps: _Steps, newcomers: dict[int, KeyReply], shared: dict[int, ConfigRecord]
    ) -> dict[int, KeyReply]:
        """Hand out envelopes; returns the newcomers who are there, but got none that opens."""
        requests: dict[int, KeyRequest] = {}
        enclosed: dict[int, bytes] = {}
        for sharer, envelopes in shared.items():
            roster = _roster(newcomers, sharer)
            for node in newcomers:
                envelope = envelopes.get(str(node))
                if isinstance(envelope, bytes):
                    sender = self.parties[sharer].name
                    requests[node] = self._request(
                        "accept", sender=sender, roster=roster, fingerprint=self.fingerprint
                    )
                    enclosed[node] = envelope
        for node, reply in steps.ask(requests, enclosed).items():
            if reply.fingerprint == self.fingerprint:
                self.examples[node] = reply.examples
        unserved = set(newcomers) - set(self.examples) - steps.silent
        return {node: newcomers[node] for node in newcomers if node in unserved}


class _Steps:
    """The questions of one key agreement.

    Attributes:
        contents: the answers to the last question.
        silent: nodes that did not answer the last question at all.
        reasons: node to why an answer of it was none, in words.
    """

    def __init__(self, grid: Grid, server_round: int, timeout: float) -> None:
        self._grid, self._timeout = grid, timeout
        self._phase: tuple[PhaseName, int] = ("keys", server_round)
        self._whole = Phase.of("keys", server_round, KEYS_ACTION, [])
        self.contents: dict[int, RecordDict] = {}
        self.silent: set[int] = set()
        self.reasons: dict[int, str] = {}

    def ask(
        self, requests: Mapping[int, KeyRequest], enclosed: Mapping[int, bytes] | None = None
    ) -> dict[int, KeyReply]:
        questions = {node: RecordDict() for node in requests}
        for node, request in requests.items():
            put_header(questions[node], request)
        for node, envelope in (enclosed or {}).items():
            questions[node][ENVELOPES] = bytes_to_record(envelope)
        asked, self.contents = ask(self._grid, self._phase, questions, KEYS_ACTION, self._timeout)
        self.silent = set(questions) - set(self.contents) - asked.refused()
        self._whole.absorb(asked)
        self.reasons |= asked.reasons()
        replies = {}
        for node, content in self.contents.items():
            try:
                replies[node] = take_header(content, KeyReply)
            except ProtocolError as error:
                self.reasons[node] = str(error)
                logger.warning("node %s answered key agreement wrongly: %s", node, error)
        return replies

    def report(self, clients: int, lost: int) -> PhaseReport:
        return self._whole.report(clients, lost=lost)


def _roster(newcomers: dict[int, KeyReply], sharer: int) -> dict[int, str]:
    return {node: reply.name for node, reply in newcomers.items() if node != sharer}


def capped_examples(announced: Mapping[int, int], cap: int = EXAMPLES_CAP) -> dict[int, int]:
    """Cap numbers of examples that are far above the others'.

    Masked values are encrypted times n_i / N_ref, N_ref being the sum of what the clients of a
    round announce. One that announces far too many makes all others small, so that their values
    lose precision.

    With the lower median m and a cap of c, a number above c m counts as at most 16 c m divided by
    how many such numbers there are, and as c m at least. At least half of the clients that announce
    any examples then have a weight of at least 1 / (c (n + 16)) in a round of n.
    """
    some = [examples for examples in announced.values() if examples > 0]  # 0 trains nothing
    if not some:
        return dict(announced)
    median = statistics.median_low(some)
    above = sum(examples > cap * median for examples in some)
    most = median * max(cap, CAP_BUDGET * cap // max(above, 1))
    return {node: min(examples, most) for node, examples in announced.items()}


def answer_keys(content: RecordDict, client: Client, examples: int) -> RecordDict:
    """Say who this client is, share the key, or accept it; the client's half."""
    request = take_header(content, KeyRequest)
    answer = RecordDict()
    client.check_opens(request.opens)
    if request.step == "hello":
        client.keys.adopt(request)
    elif request.step == "share":
        answer[ENVELOPES] = ConfigRecord(dict(client.keys.share(request)))
    else:
        client.keys.accept(request, record_to_bytes(content, ENVELOPES))
    put_header(answer, client.keys.introduce(request, examples))
    return answer
