"""Updates: the answers of one training round, checked one by one as they are added."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
from flwr.app import Message, RecordDict
from numpy.typing import NDArray

from fedsens.crypto import Aggregator
from fedsens.errors import FedSensError, LayoutError, PhaseError, ProtocolError, ValueRangeError
from fedsens.files import Arrays
from fedsens.flower._phase import Phase, listed
from fedsens.flower._records import (
    CIPHERTEXT,
    PREFIX,
    examples_of,
    model_key,
    record_to_bytes,
    take_header,
    to_arrays,
)
from fedsens.flower._uploads import UploadSum
from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask, check_plain, not_finite
from fedsens.protocol import Aggregate, Party, UploadHeader

logger = logging.getLogger(__name__)

# Names of the records and metrics of an answer, and whether these are lists: a strategy can average
# only what has the same.
RecordSchema = frozenset[tuple[str, str, bool]]
FIRST_EMPTY, LATER_EMPTY = 1, 3  # rounds in a row that change nothing and end a run
MAX_SCHEMAS = 4  # clients of one app have one; more are somebody's mistake or malice


@dataclass
class Group:
    """Answers with the same records and metrics, and the sum of their ciphertexts."""

    uploads: UploadSum
    replies: dict[int, Message]


@dataclass(frozen=True)
class RoundResult:
    """What a round of training came to.

    Attributes:
        replies: node to the answer that counts, for the inner strategy.
        aggregate: the sum of their ciphertexts; None where the round is void.
        weight: the sum of their weights.
        mean: of what they encrypted, where the server opens it.
        spoilt: whether the server opened nonsense, so that the round is part of a search.
    """

    replies: dict[int, Message]
    aggregate: Aggregate | None = None
    weight: float = 0.0
    mean: NDArray[np.floating] | None = None
    spoilt: bool = False


class Updates:
    """Adds up the updates of a round as they arrive; a wrong one is left out by name.

    Of a ciphertext nothing is kept but the sum that it went into. There is a sum for each schema
    of records and metrics, and the most frequent one counts. A sum takes 8 bytes for each
    encrypted parameter, so there are :data:`MAX_SCHEMAS` of them at most.

    Attributes:
        refused: answers that were left out as wrong.
        reasons: node to why its answer was left out.
    """

    def __init__(
        self,
        phase: Phase,
        layout: ParameterLayout,
        mask: EncryptionMask,
        parties: Mapping[int, Party],
        stand_in: RecordDict | None = None,
        majority: RecordSchema | None = None,
    ) -> None:
        """Remember what was asked.

        Args:
            phase: the question, which has been sent.
            layout: the model's layout.
            mask: the mask that answers must be split by.
            parties: node to the client that was asked there.
            stand_in: the record that stands for the remainder where clients keep theirs.
            majority: the schema that counted in the round before, which always has a place.
        """
        assert phase.header is not None
        self._phase, self._sent = phase, phase.header
        self._layout, self._mask, self._parties = layout, mask, parties
        self._stand_in, self._expected = stand_in, majority
        self._groups: dict[RecordSchema, Group] = {}
        self.refused = 0
        self.reasons: dict[int, str] = {}

    def take(self, node: int, reply: Message) -> bool:
        """Check one answer and add it if it is right.

        Args:
            node: who answered.
            reply: the answer; fedsens's records are removed from it.

        Returns:
            Whether it was added.
        """
        if reply.has_error():
            return False
        try:
            header, ciphertext = self._read(reply.content)
            schema = schema_of(reply.content)
            group = self._groups.get(schema) or self._new_group(schema)
            group.uploads.check(node, header)
            self._check_weight(reply.content, header)
            group.uploads.add(node, header, ciphertext)
        except FedSensError as error:
            logger.warning("left out the update of node %s: %s", node, error)
            self.reasons[node] = str(error)
            self.refused += 1
            return False
        group.replies[node] = reply
        self._groups[schema] = group
        return True

    def _new_group(self, schema: RecordSchema) -> Group:
        reserved = {self._expected} - {None} - set(self._groups)
        if schema != self._expected and len(self._groups) + len(reserved) >= MAX_SCHEMAS:
            raise ProtocolError(
                f"expected answers of at most {MAX_SCHEMAS} different forms in a round, got "
                "records or metrics of yet other names or types; run the same app on every client"
            )
        aggregator = Aggregator(self._sent.parameters, self._mask.k)
        return Group(UploadSum(self._phase.context("update"), aggregator, self._parties), {})

    def settle(self, least: int) -> UploadSum | None:
        """Fix whose updates count; the others are named in the log.

        Args:
            least: updates that a sum needs.

        Returns:
            The sum whose contributors are to be asked for their keys; None if they are too few.
        """
        group = self._majority()
        for other in self._groups.values():
            for node in other.replies if other is not group else ():
                _warn_of_schema(node)
                self.refused += 1
        return None if group is None or len(group.replies) < least else group.uploads

    def result(self, least: int) -> RoundResult:
        """The sum of what was added, once the keys have been collected.

        Args:
            least: updates that a sum needs; of fewer nothing is opened.

        Returns:
            The result. A key that did not come is a PhaseError, which names the nodes.
        """
        group = self._majority()
        if group is None:
            return RoundResult({})
        uploads, replies = group.uploads, group.replies
        weight = math.fsum(uploads.weights)
        if len(replies) < least:
            return RoundResult(replies, weight=weight)
        if self._sent.opens == "server":
            return RoundResult(replies, weight=weight, mean=uploads.open_here())
        return RoundResult(replies, uploads.open_for_holders(), weight)

    @property
    def schema(self) -> RecordSchema | None:
        """The schema that counts; None where nobody answered."""
        return max(self._groups, key=lambda each: len(self._groups[each].replies), default=None)

    def seconds(self) -> dict[str, float]:
        """CPU seconds of the server to add, and of a client to encrypt and decrypt (mean)."""
        group = self._majority()
        headers = list(group.uploads.headers.values()) if group else []
        return {
            "add_seconds": sum(each.uploads.seconds for each in self._groups.values()),
            "encrypt_seconds": _mean([header.encrypt_seconds for header in headers]),
            "decrypt_seconds": _mean([header.decrypt_seconds for header in headers]),
        }

    def _majority(self) -> Group | None:
        return None if self.schema is None else self._groups[self.schema]

    def _read(self, content: RecordDict) -> tuple[UploadHeader, bytes]:
        header = take_header(content, UploadHeader)
        ciphertext = record_to_bytes(content, CIPHERTEXT)
        self._check_remainder(content)
        if strange := [key for key in content if key.startswith(PREFIX)]:
            raise ProtocolError(f"expected no more records of fedsens, got {strange}")
        _check_metrics(content)
        return header, ciphertext

    def _check_weight(self, content: RecordDict, header: UploadHeader) -> None:
        weight = self._sent.weight_of(examples_of(content, self._sent.weighted_by))
        if not math.isclose(header.weight, weight, rel_tol=1e-9):
            raise ProtocolError(
                "expected the weight that the number of examples gives, got another"
            )

    def _check_remainder(self, content: RecordDict) -> None:
        if self._stand_in is None:
            self._check_arrays(to_arrays(content.array_records[model_key(content)]))
            return
        if content.array_records:
            raise ProtocolError(
                "expected no plaintext remainder, because clients are to withhold it, got "
                f"{sorted(content.array_records)}; use the same fedsens version on all clients"
            )
        content.update(self._stand_in)

    def _check_arrays(self, arrays: Arrays) -> None:
        check_plain(arrays, self._layout, self._mask)
        wrong = [t.name for t in self._layout.tensors if str(arrays[t.name].dtype) != t.dtype]
        if wrong:
            raise LayoutError(f"expected the layout's types, got others in {', '.join(wrong)}")
        if broken := not_finite(arrays):
            raise ValueRangeError(f"expected finite values, got NaN or infinity in {broken}")


class EmptyRounds:
    """Counts rounds in a row in which no update counted, and ends a run that has too many.

    Attributes:
        why: why the last round was empty, or why clients are missing in it.
    """

    def __init__(self, most: int | None) -> None:
        """Count from now on.

        Args:
            most: rounds in a row that end a run; None for one where every answer of the first
                round is wrong, else three.
        """
        self._most, self._rounds = most, 0
        self.why = listed({})

    def count(
        self,
        server_round: int,
        clients: int,
        reasons: Mapping[int, str],
        first: bool,
        void: str = "",
        search: bool = False,
    ) -> None:
        """Take note of a round.

        Args:
            server_round: the round.
            clients: updates that counted.
            reasons: node to why its update did not count.
            first: no round changed the model yet, and no answer of this one could be used.
            void: why the round changes nothing, where more is known than the clients' reasons.
            search: whether it is void for the sake of finding who spoils sums, and does not count.

        Raises:
            PhaseError: the limit is reached; it tells the clients' reasons.
        """
        self.why = f"{void}; {listed(reasons)}" if void and reasons else void or listed(reasons)
        if search:
            return
        self._rounds = 0 if clients else self._rounds + 1
        limit = self._most or (FIRST_EMPTY if first and reasons else LATER_EMPTY)
        if self._rounds < limit:
            return
        raise PhaseError(
            f"expected at least one client's update within {limit} rounds, got none up to round "
            f"{server_round}: {self.why}; mend the clients, or raise "
            "fedsens.max-empty-rounds if rounds may be empty",
            nodes=reasons,
        )


def _check_metrics(content: RecordDict) -> None:
    if len(content.metric_records) != 1:
        raise ProtocolError(f"expected one MetricRecord, got {len(content.metric_records)}")


def usable_metrics(replies: Iterable[Message], weighted_by: str) -> list[Message]:
    """The replies to an evaluation that a strategy can average; others are left out by name.

    Args:
        replies: replies without errors.
        weighted_by: name of the metric that counts examples.

    Returns:
        Those with a number of examples and the metrics that most of them have.
    """
    usable = []
    for reply in replies:
        try:
            _check_metrics(reply.content)
            examples_of(reply.content, weighted_by)
        except ProtocolError as error:
            logger.warning("left out the metrics of node %s: %s", reply.metadata.src_node_id, error)
        else:
            usable.append(reply)
    schemas = Counter(schema_of(reply.content) for reply in usable)
    majority = schemas.most_common(1)[0][0] if schemas else frozenset()
    return [reply for reply in usable if _has_schema(reply, majority)]


def _has_schema(reply: Message, majority: RecordSchema) -> bool:
    # The inner strategy would end the run over one client's extra or missing metric.
    if schema_of(reply.content) == majority:
        return True
    _warn_of_schema(reply.metadata.src_node_id)
    return False


def _warn_of_schema(node: int) -> None:
    logger.warning(
        "left out the answer of node %s: expected records and metrics of the names and types that "
        "most answers have, got others; run the same app on every client",
        node,
    )


def schema_of(content: RecordDict) -> RecordSchema:
    """Names of the records and metrics, and which of these are lists: what a mean needs alike.

    How long a list is decides nothing here, see :func:`averageable`.
    """
    metrics = {
        (key, name, isinstance(value, list))
        for key, record in content.metric_records.items()
        for name, value in record.items()
    }
    return frozenset(metrics | {(key, "", False) for key in content.array_records})


def _not_finite(content: RecordDict) -> list[str]:
    """Names of the metrics that are no numbers, of which one would make a mean none either."""
    metrics = [item for record in content.metric_records.values() for item in record.items()]
    return sorted(
        name
        for name, value in metrics
        if not all(map(math.isfinite, value if isinstance(value, list) else [value]))
    )


def averageable(replies: list[Message]) -> list[Message]:
    """Drop the metrics that have no mean: lists of different lengths, NaN and infinity.

    Args:
        replies: replies with one MetricRecord each and the same schema; changed in place.

    Returns:
        The replies.
    """
    records = [record for reply in replies for record in reply.content.metric_records.values()]
    lengths: dict[str, set[int]] = {}
    for record in records:
        for name, value in record.items():
            if isinstance(value, list):
                lengths.setdefault(name, set()).add(len(value))
    if uneven := [name for name, found in lengths.items() if len(found) > 1]:
        logger.warning(
            "left out the metrics %s: lists of different lengths have no mean; give the strategy "
            "an aggregation function of its own for them",
            ", ".join(map(repr, uneven)),
        )
    broken = {reply.metadata.src_node_id: _not_finite(reply.content) for reply in replies}
    for node, names in broken.items():
        if names:
            text = "left out the metrics %s, which are NaN or infinite at node %s"
            logger.warning(text, ", ".join(map(repr, names)), node)
    dropped = {*uneven, *(name for names in broken.values() for name in names)}
    for record, name in product(records, sorted(dropped)):
        record.pop(name, None)
    return replies


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
