"""Updates: the answers of one training round, checked one by one as they are added."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import product

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from numpy.typing import NDArray

from fedsens._files import Arrays
from fedsens.crypto import Aggregator
from fedsens.errors import FedSensError, LayoutError, PhaseError, ProtocolError, ValueRangeError
from fedsens.flower._phase import Phase, listed
from fedsens.flower._records import (
    CIPHERTEXT,
    HEADER,
    PREFIX,
    examples_of,
    model_key,
    record_to_bytes,
    take_header,
    to_arrays,
)
from fedsens.flower._uploads import UploadSum
from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask, as_layout_types, check_plain, not_finite
from fedsens.protocol import Aggregate, Party, ProtectedModel, UploadHeader

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
    """

    replies: dict[int, Message]
    aggregate: Aggregate | None = None
    weight: float = 0.0
    mean: NDArray[np.floating] | None = None


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
        """Remember what was asked, and of whom.

        ``stand_in`` is the record that stands for the remainder where clients keep theirs;
        ``majority`` the schema that counted in the round before, which always has a place.
        """
        assert phase.header is not None
        self._phase, self._sent = phase, phase.header
        self._layout, self._mask, self._parties = layout, mask, parties
        self._stand_in, self._expected = stand_in, majority
        self._groups: dict[RecordSchema, Group] = {}
        self.refused = 0
        self.reasons: dict[int, str] = {}

    def take(self, node: int, reply: Message) -> bool:
        """Check one answer and add it if it is right."""
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

        The sum's contributors are then asked for their keys; None if they are too few, or one
        outweighs all others.
        """
        group = self._majority()
        for other in self._groups.values():
            for node in other.replies if other is not group else ():
                _warn_of_schema(node)
                self.refused += 1
        if group is None or len(group.replies) < least:
            return None
        try:
            group.uploads.check_list(least)
        except PhaseError:  # which result() raises again
            return None
        return group.uploads

    def result(self, least: int) -> RoundResult:
        """The sum of what was added, once the keys have been collected; of too few nothing.

        A key that did not come is a PhaseError, which names the nodes, and so are weights that
        clients would refuse.
        """
        group = self._majority()
        if group is None:
            return RoundResult({})
        uploads, replies = group.uploads, group.replies
        weight = math.fsum(uploads.weights)
        if len(replies) < least:
            return RoundResult(replies, weight=weight)
        uploads.check_list(least)
        if self._sent.opens == "server":
            return RoundResult(replies, weight=weight, mean=uploads.open_here())
        return RoundResult(replies, uploads.open_for_holders(), weight)

    @property
    def schema(self) -> RecordSchema | None:
        """The schema that counts; None where nobody answered."""
        counts = {each: len(group.replies) for each, group in self._groups.items()}
        # Of two forms that are as frequent it is the one of the round before.
        return max(counts, key=lambda each: (counts[each], each == self._expected), default=None)

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
        if HEADER not in content:
            got = (
                "one without its header; give the client's app SelectiveEncryptionMod"
                if content.array_records
                else "none; return the trained model in an ArrayRecord"
            )
            raise ProtocolError(f"expected an encrypted model in the answer to training, got {got}")
        header = take_header(content, UploadHeader)
        ciphertext = record_to_bytes(content, CIPHERTEXT)
        self._check_remainder(content)
        if strange := [key for key in content if key.startswith(PREFIX)]:
            raise ProtocolError(f"expected no more records of fedsens, got {strange}")
        _check_metrics(content)
        return header, ciphertext

    def _check_weight(self, content: RecordDict, header: UploadHeader) -> None:
        weight = self._sent.weight_of(examples_of(content, self._sent.weighted_by))
        # With central noise clients refuse a list of weights that differ in any bit.
        tolerance = 0.0 if self._sent.dp is not None else 1e-9
        if not math.isclose(header.weight, weight, rel_tol=tolerance):
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


class Constants:
    """The integers that no answer changed: a mean of equals, computed as floats, may round them."""

    def __init__(self, model: ProtectedModel, results: Iterable[RoundResult]) -> None:
        """Compare the answers that count with the model that was sent."""
        types = {t.name: t.array_type for t in model.layout.tensors if t.offset is None}
        # What an earlier mean made is a float until clients get it, rounded.
        with np.errstate(invalid="ignore"):  # of numbers that clients refuse
            self._before = {
                name: np.asarray(np.rint(array), types[name]) if array.dtype.kind == "f" else array
                for name, array in model.plain.items()
                if name in types
            }
        self._same = {name: np.ones(a.shape, np.bool_) for name, a in self._before.items()}
        for reply in (reply for each in results for reply in each.replies.values()):
            record = reply.content.array_records[model_key(reply.content)]
            for name, array in _some_of(record, self._same).items():
                self._same[name] &= array == self._before[name]

    def restore(self, arrays: ArrayRecord) -> None:
        """Put them into a mean."""
        constant = [name for name, same in self._same.items() if same.any() and name in arrays]
        for name, mean in _some_of(arrays, constant).items():
            before, same = self._before[name], self._same[name]
            own = ParameterLayout.from_shapes([(name, before.shape, str(before.dtype))])
            with suppress(LayoutError):  # whoever takes this mean refuses it by name
                typed = as_layout_types({name: np.where(same, 0, mean)}, own)[name]
                arrays[name] = Array(np.where(same, before, typed))


def _some_of(record: ArrayRecord, names: Iterable[str]) -> Arrays:
    return to_arrays(ArrayRecord({name: record[name] for name in names}))


class EmptyRounds:
    """Counts rounds in a row in which no update counted, and ends a run that has too many.

    Attributes:
        why: why the last round was empty, or why clients are missing in it.
    """

    def __init__(self, most: int | None) -> None:
        """Count from now on up to so many rounds in a row.

        None is one where every answer of the first round is wrong, else three.
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
        """Take note of a round, by how many updates counted in it and why others did not.

        ``first``: no round changed the model yet, and no answer of this one could be used.
        ``void``: why the round changes nothing, where more is known. ``search``: it is void for the
        sake of finding who spoils sums, and does not count.

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
    """Those replies with examples and with the metrics that most have; others are named."""
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
    """Drop, in place, metrics that have no mean: lists of different lengths, NaN and infinity."""
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
