"""Encrypted uploads: added as they arrive, then opened by the contributors' keys as a sum only.

A client encrypts each upload under a secret that it uses once. When the server has fixed the list
of those whose uploads count, it asks each of them for its secret under pads that cancel in the sum
over exactly that list. An upload that is lost before costs nothing; a key that does not come voids
the sum, because a second list for the same uploads would show the difference of two sums.
"""

from __future__ import annotations

import ctypes
import logging
import math
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedsens.crypto import Aggregator, OneTimeSecret
from fedsens.errors import ContributorsError, CryptoError, PhaseError, ProtocolError, SumError
from fedsens.flower._phase import Phase, ask, listed
from fedsens.flower._records import (
    KEY_ANSWER,
    KEY_SUM_ACTION,
    bytes_to_record,
    put_header,
    record_to_bytes,
    take_header,
)
from fedsens.protocol import (
    KEY_BYTES,
    Aggregate,
    AggregateHeader,
    Contributor,
    Contributors,
    KeySumRequest,
    Party,
    RoundContext,
    UploadHeader,
    check_weight,
    plausible_mean,
    sum_answers,
    tag_count,
)
from fedsens.protocol import Phase as PhaseName

if TYPE_CHECKING:
    from fedsens.flower._client import Client

logger = logging.getLogger(__name__)

LARGE = 2**20  # bytes of an upload, the pieces of whose message are worth handing back
TRIES = 2  # times that the same list is asked for; a repeated answer is the same


@dataclass
class UploadSum:
    """The server's sum of the uploads of one context.

    Attributes:
        context: what the uploads must be bound to.
        aggregator: adds the ciphertexts.
        parties: node to the client that was asked there.
        headers: node to header of what was added.
        answers: node to its padded key, as far as they came (:func:`collect_keys`).
        reasons: node to why it gave none, in its words.
        seconds: CPU seconds of adding.
    """

    context: RoundContext
    aggregator: Aggregator
    parties: Mapping[int, Party]
    headers: dict[int, UploadHeader] = field(default_factory=dict)
    answers: dict[int, bytes] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def weights(self) -> list[float]:
        """The weights of what was added."""
        return [each.weight for each in self.headers.values()]

    def check(self, node: int, header: UploadHeader) -> None:
        """Refuse an upload that is bound to something else, or not this client's."""
        if header.context != self.context.digest.hex():
            raise ProtocolError(
                "expected an upload that is bound to what the server said in this round, got one "
                "that is bound to something else; the client must answer this round's message"
            )
        check_weight(header.weight)
        if header.name != self.parties[node].name:
            raise ProtocolError(
                f"expected an upload of {self.parties[node].name[:16]}, got one of "
                f"{header.name[:16]}; a client must use the identity that it named"
            )
        parameters = self.context.parameters
        modulus = parameters.wire_modulus
        count = tag_count(parameters, self.context.opens)
        if len(header.tags) != count or not all(0 <= tag < modulus for tag in header.tags):
            raise ProtocolError(f"expected {count} tags below {modulus}, got others")

    def add(self, node: int, header: UploadHeader, ciphertext: bytes) -> None:
        """Add a checked upload; a ciphertext that is wrong raises and changes nothing."""
        if len(ciphertext) >= LARGE:
            _hand_back_memory()
        started = time.process_time()
        self.aggregator.add(ciphertext, fresh=True)
        self.seconds += time.process_time() - started
        self.headers[node] = header

    def check_weights(self, least: int) -> None:
        """Drop a sum that clients would refuse, by the name of those whose weight is why."""
        weights = {node: each.weight for node, each in self.headers.items()}
        if heavy := Contributors.outweighing(weights, least):
            raise PhaseError(
                "expected uploads of which none outweighs the others, as clients refuse a sum that "
                f"is nearly one client's value, got {_nodes(heavy)} with "
                f"{sum(weights[node] for node in heavy):.2g} of a weight of "
                f"{math.fsum(self.weights):.2g}; have it count fewer examples, or lower "
                "fedsens.train-min-clients and all clients' fedsens-min-contributors",
                nodes=heavy,
            )

    def check_list(self, least: int) -> None:
        """Drop a sum for which honest clients would refuse to give their keys.

        Raises:
            PhaseError: says why. They are not to blame for it, so no nodes are named but those that
                outweigh the others.
        """
        self.check_weights(least)
        try:
            self.contributors.check(least)
        except ContributorsError as error:
            raise PhaseError(str(error)) from None

    def open_for_holders(self) -> Aggregate:
        """What a key holder can open, once the keys have been collected.

        A key that did not come is a PhaseError with the nodes (``error.nodes``): these uploads can
        never be opened.
        """
        contributors, key_sum = self.contributors, self._key_sum()
        started = time.process_time()
        header = AggregateHeader(
            context=self.context,
            contributors=contributors,
            tags=self._tags(),
            fingerprint=self.context.fingerprint,
        )
        aggregate = Aggregate(header, self.aggregator.result(), key_sum)
        self.seconds += time.process_time() - started
        return aggregate

    def open_here(self) -> NDArray[np.floating]:
        """The weighted mean of the contributors' values, once the keys have been collected.

        Raises:
            SumError: what came opens nothing that honest clients could have made. A key that
                does not come is a PhaseError.
        """
        from fedsens.crypto import Decryptor  # which loads SEAL: only where a server opens sums

        contributors, key_sum = self.contributors, self._key_sum()
        started, parameters = time.process_time(), self.context.parameters
        summed = np.frombuffer(key_sum, "<i2").astype(np.int64)
        try:
            secret = OneTimeSecret.from_array(summed, len(contributors.members))
            decryptor = Decryptor(parameters, context=self.context.digest)
            mean = decryptor.decrypt(self.aggregator.result(), secret, np.float64)
            mean /= contributors.weight
            plausible = plausible_mean(mean, parameters, contributors)
        except CryptoError:
            plausible = False
        if not plausible:
            raise SumError(
                "expected a sum that honest clients could have made, got another; a client "
                "deviates from the protocol, and the sum does not tell which: it is dropped",
                refused=self.headers,
            )
        self.seconds += time.process_time() - started
        return mean

    @property
    def contributors(self) -> Contributors:
        """The list of those whose uploads were added."""
        return Contributors.of(
            Contributor(name=each.name, weight=each.weight, nonce=each.nonce)
            for each in self.headers.values()
        )

    @property
    def request(self) -> KeySumRequest:
        """What the contributors are asked for."""
        return KeySumRequest(
            kind=self.context.kind,
            round=self.context.round,
            context=self.context.digest.hex(),
            contributors=self.contributors,
        )

    def _key_sum(self) -> bytes:
        if missing := set(self.headers) - set(self.answers):
            why = {node: self.reasons[node] for node in missing & self.reasons.keys()}
            raise PhaseError(
                f"expected the keys of all {len(self.headers)} clients whose uploads were added, "
                f"got none from {_nodes(missing)}; the sum "
                "cannot be opened and is dropped" + (f": {listed(why)}" if why else ""),
                nodes=missing,
            )
        return sum_answers(self.answers.values())

    def _tags(self) -> tuple[int, ...]:
        modulus = self.context.parameters.wire_modulus
        columns = zip(*(each.tags for each in self.headers.values()), strict=True)
        return tuple(sum(column) % modulus for column in columns)


def collect_keys(
    grid: Grid, phase: tuple[PhaseName, int], sums: Sequence[UploadSum], timeout: float
) -> Phase:
    """Fix the lists of contributors and ask for their keys, all sums at once; the exchange.

    The sums are of different clients each; their ``answers`` are filled in.
    """
    questions: dict[int, RecordDict] = {}
    for each in sums:
        content = RecordDict()
        put_header(content, each.request)
        questions |= dict.fromkeys(each.headers, content)
    exchange = Phase.of(*phase, KEY_SUM_ACTION, [])
    refused: set[int] = set()
    for _ in range(TRIES):
        # Whoever refuses would do so again, and without one key a sum is void.
        open_sums = [each for each in sums if not refused & set(each.headers)]
        silent = [n for each in open_sums for n in each.headers if n not in each.answers]
        if not silent:
            break
        asked = {node: questions[node] for node in silent}
        tried, got = ask(grid, phase, asked, KEY_SUM_ACTION, timeout)
        for each in open_sums:
            for node in each.headers.keys() & got.keys():
                answer = _key_answer(node, got[node])
                each.answers |= {} if answer is None else {node: answer}
            each.reasons |= tried.reasons()
        exchange.absorb(tried)
        refused |= tried.refused()
    return exchange


def _key_answer(node: int, content: RecordDict) -> bytes | None:
    try:
        answer = record_to_bytes(content, KEY_ANSWER)
    except ProtocolError as error:
        logger.warning("node %s gave no key: %s", node, error)
        return None
    if len(answer) != KEY_BYTES:
        logger.warning("node %s gave a key of %d bytes, not %d", node, len(answer), KEY_BYTES)
        return None
    return answer


def answer_key_sum(content: RecordDict, client: Client) -> RecordDict:
    """Hand out this client's padded one-time secret for one list; the client's half."""
    request = take_header(content, KeySumRequest)
    answer = client.uploads.answer_key_sum(request)
    return RecordDict({KEY_ANSWER: bytes_to_record(answer)})


def _nodes(nodes: Collection[int]) -> str:
    return ", ".join(f"node {node}" for node in sorted(nodes))


def _hand_back_memory() -> None:
    """Give the system the freed pieces of a large message, which glibc keeps: 5 bytes a value."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # which other C libraries lack
        if trim is not None:
            trim(0)
