"""Encrypted uploads: added as they arrive, then opened by the contributors' keys as a sum only.

A client encrypts each upload under a secret that it uses once. When the server has fixed the list
of those whose uploads count, it asks each of them for its secret under pads that cancel in the sum
over exactly that list. An upload that is lost before costs nothing; a key that does not come voids
the sum, because a second list for the same uploads would show the difference of two sums.
"""

from __future__ import annotations

import ctypes
import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedsens.crypto import Aggregator, OneTimeSecret
from fedsens.errors import CryptoError, PhaseError, ProtocolError, SumError
from fedsens.flower._phase import Phase, ask
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
        seconds: CPU seconds of adding.
    """

    context: RoundContext
    aggregator: Aggregator
    parties: Mapping[int, Party]
    headers: dict[int, UploadHeader] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def weights(self) -> list[float]:
        """The weights of what was added."""
        return [each.weight for each in self.headers.values()]

    def check(self, node: int, header: UploadHeader) -> None:
        """Refuse an upload that is bound to something else, or not this client's.

        Args:
            node: who answered.
            header: of its upload.

        Raises:
            ProtocolError: it must not be added.
        """
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

    def open_for_holders(
        self, grid: Grid, phase: tuple[PhaseName, int], timeout: float
    ) -> tuple[Aggregate, Phase]:
        """Fix the list of contributors and collect their keys.

        Args:
            grid: Flower's grid.
            phase: name and server round, for the report.
            timeout: deadline for the keys in seconds.

        Returns:
            What a key holder can open, and the exchange for the report. A key that does not come is
            a PhaseError with the nodes (``error.nodes``): these uploads can never be opened.
        """
        contributors, key_sum, exchange = self._collect(grid, phase, timeout)
        started = time.process_time()
        header = AggregateHeader(
            context=self.context,
            contributors=contributors,
            tags=self._tags(),
            fingerprint=self.context.fingerprint,
        )
        aggregate = Aggregate(header, self.aggregator.result(), key_sum)
        self.seconds += time.process_time() - started
        return aggregate, exchange

    def open_here(
        self, grid: Grid, phase: tuple[PhaseName, int], timeout: float
    ) -> tuple[NDArray[np.floating], Phase]:
        """Fix the list of contributors, collect their keys and open the sum.

        Args:
            grid: Flower's grid.
            phase: name and server round, for the report.
            timeout: deadline for the keys in seconds.

        Returns:
            The weighted mean of the contributors' values, and the exchange for the report.

        Raises:
            SumError: what came opens nothing that honest clients could have made. A key that
                does not come is a PhaseError.
        """
        from fedsens.crypto import Decryptor  # which loads SEAL: in this mode of the server only

        contributors, key_sum, exchange = self._collect(grid, phase, timeout)
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
        return mean, exchange

    def _collect(
        self, grid: Grid, phase: tuple[PhaseName, int], timeout: float
    ) -> tuple[Contributors, bytes, Phase]:
        """The list of contributors, the sum of their keys and the exchange."""
        contributors = Contributors.of(
            Contributor(name=each.name, weight=each.weight, nonce=each.nonce)
            for each in self.headers.values()
        )
        answers, exchange = self._ask_for_keys(grid, phase, contributors, timeout)
        if missing := set(self.headers) - set(answers):
            raise PhaseError(
                f"expected the keys of all {len(self.headers)} clients whose uploads were added, "
                f"got none from {', '.join(f'node {node}' for node in sorted(missing))}; the sum "
                "cannot be opened and is dropped",
                nodes=missing,
            )
        return contributors, sum_answers(answers.values()), exchange

    def _ask_for_keys(
        self,
        grid: Grid,
        phase: tuple[PhaseName, int],
        contributors: Contributors,
        timeout: float,
    ) -> tuple[dict[int, bytes], Phase]:
        request = KeySumRequest(
            kind=self.context.kind,
            round=self.context.round,
            context=self.context.digest.hex(),
            contributors=contributors,
        )
        content = RecordDict()
        put_header(content, request)
        answers: dict[int, bytes] = {}
        exchange = None
        for _ in range(TRIES):
            silent = [node for node in self.headers if node not in answers]
            if not silent:
                break
            tried, got = ask(grid, phase, dict.fromkeys(silent, content), KEY_SUM_ACTION, timeout)
            for node, reply in got.items():
                answer = _key_answer(node, reply)
                answers |= {} if answer is None else {node: answer}
            if exchange is None:
                exchange = tried
            else:
                exchange.absorb(tried)
            if tried.refused():
                break  # it would refuse again
        assert exchange is not None
        return answers, exchange

    def _tags(self) -> tuple[int, ...]:
        modulus = self.context.parameters.wire_modulus
        columns = zip(*(each.tags for each in self.headers.values()), strict=True)
        return tuple(sum(column) % modulus for column in columns)


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
    """Hand out this client's padded one-time secret for one list; the client's half.

    Args:
        content: the message's content.
        client: this client.

    Returns:
        The answer.
    """
    request = take_header(content, KeySumRequest)
    answer = client.uploads.answer_key_sum(request)
    return RecordDict({KEY_ANSWER: bytes_to_record(answer)})


def _hand_back_memory() -> None:
    """Give the system the freed pieces of a large message, which glibc keeps: 5 bytes a value."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # which other C libraries lack
        if trim is not None:
            trim(0)
