"""Updates: the answers of one training round, checked one by one as they are added."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict

from fedsens.crypto import Aggregator
from fedsens.errors import FedSensError, LayoutError, ProtocolError, RoundError, ValueRangeError
from fedsens.files import Arrays
from fedsens.flower.records import (
    CIPHERTEXT,
    PREFIX,
    examples_of,
    model_key,
    record_to_bytes,
    take_header,
    to_arrays,
)
from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask, check_plain, not_finite
from fedsens.protocol.contributors import Contributors, check_name
from fedsens.protocol.examples import check_weight
from fedsens.protocol.headers import ModelHeader, UpdateHeader
from fedsens.protocol.tags import tagged

logger = logging.getLogger(__name__)

Form = frozenset[tuple[str, str, int]]
FORMS = 4  # clients of one app have one; more are somebody's mistake or malice


@dataclass(frozen=True)
class Update:
    """A checked and added answer: the message without fedsens's records, and its header."""

    reply: Message
    header: UpdateHeader


@dataclass
class Group:
    """Updates with the same records and metrics, and the sum of their ciphertexts."""

    aggregator: Aggregator
    updates: dict[int, Update] = field(default_factory=dict)  # by node


class Updates:
    """Adds up the updates of a round as they arrive; a wrong one is left out by name.

    Of a ciphertext nothing is kept but the sum that it went into. A strategy can average only what
    has the same records and metrics, so there is a sum for each form; the most frequent one counts.
    A sum takes 16 bytes for each encrypted parameter, so there are :data:`FORMS` of them at most.

    Attributes:
        refused: answers that were left out as wrong.
    """

    def __init__(
        self,
        sent: ModelHeader,
        layout: ParameterLayout,
        mask: EncryptionMask,
        fingerprint: str,
        withheld: RecordDict | None = None,
        usual: Form | None = None,
    ) -> None:
        """Remember what was asked.

        Args:
            sent: the header that went out with the model.
            layout: the model's layout.
            mask: the mask that answers must be split by; without one there is nothing to add.
            fingerprint: of the federation's key.
            withheld: the record that stands for the remainder where clients withhold it.
            usual: the form that counted in the round before, which always has a place.
        """
        self._withheld = withheld
        self._sent = sent
        self._layout = layout
        self._mask = mask
        self._fingerprint = fingerprint
        self._expected = usual
        self._names: set[str] = set()
        self.refused = 0
        self._groups: dict[Form, Group] = {}
        self._add_seconds = 0.0

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
            header, ciphertext = self._check(reply)
            check_name(header.contributor, node, self._names)
            form = _form(reply.content)
            group = self._groups.get(form) or self._new_group(form)
            started = time.process_time()
            group.aggregator.add(ciphertext, fresh=True)
            self._add_seconds += time.process_time() - started
        except FedSensError as error:
            logger.warning("left out the update of node %s: %s", node, error)
            self.refused += 1
            return False
        group.updates[node] = Update(reply, header)
        self._groups[form] = group
        self._names.add(header.contributor)
        return True

    def _new_group(self, form: Form) -> Group:
        reserved = {self._expected} - {None} - set(self._groups)
        if form != self._expected and len(self._groups) + len(reserved) >= FORMS:
            raise ProtocolError(
                f"expected answers of at most {FORMS} different forms in a round, got records or "
                "metrics of yet other names or lengths; run the same app on every client"
            )
        count = tagged(self._mask.k, self._sent.parameters)
        return Group(Aggregator(self._sent.parameters, count, self._fingerprint))

    def result(self, run: int) -> tuple[dict[int, Message], bytes | None, Contributors | None]:
        """The sum of what was added.

        Args:
            run: the Flower run.

        Returns:
            Node to the answer that went in, for the inner strategy; the sum of the ciphertexts
            and who they are from (None where nobody answered).
        """
        if (usual := self._usual()) is None:
            return {}, None, None
        for group in self._groups.values():
            for node in group.updates if group is not usual else ():
                _warn_of_form(node)
                self.refused += 1
        started = time.process_time()
        ciphertext = usual.aggregator.result()
        self._add_seconds += time.process_time() - started
        headers = [update.header for update in usual.updates.values()]
        contributors = Contributors(
            run=str(run),
            reference=self._sent.reference,
            names=tuple(header.contributor for header in headers),
            weights=tuple(header.weight for header in headers),
        )
        return {node: each.reply for node, each in usual.updates.items()}, ciphertext, contributors

    @property
    def form(self) -> Form | None:
        """The form that counts; None where nobody answered."""
        return max(self._groups, key=lambda f: len(self._groups[f].updates), default=None)

    def seconds(self) -> dict[str, float]:
        """CPU seconds of the server to add, and of a client to encrypt and decrypt (mean)."""
        usual = self._usual()
        headers = [update.header for update in usual.updates.values()] if usual else []
        return {
            "add_seconds": self._add_seconds,
            "encrypt_seconds": _mean([header.encrypt_seconds for header in headers]),
            "decrypt_seconds": _mean([header.decrypt_seconds for header in headers]),
        }

    def _usual(self) -> Group | None:
        return None if self.form is None else self._groups[self.form]

    def _check(self, reply: Message) -> tuple[UpdateHeader, bytes]:
        content, sent = reply.content, self._sent
        header = take_header(content, UpdateHeader)
        if header.round != sent.round:
            raise RoundError(f"expected an update of round {sent.round}, got {header.round}")
        for name, mine, theirs in (
            ("mask", sent.mask, header.mask),
            ("layout", self._layout.digest, header.layout),
            ("key", self._fingerprint, header.fingerprint),
        ):
            if mine != theirs:
                raise ProtocolError(
                    f"expected an update under the {name} {mine[:16]}, got {theirs[:16]}; the "
                    "client must answer the model of this round"
                )
        weight = examples_of(content, sent.weighted_by) / sent.reference
        if not math.isclose(header.weight, weight, rel_tol=1e-9):
            raise ProtocolError(
                "expected the weight that the number of examples gives, got another"
            )
        check_weight(weight)
        ciphertext = record_to_bytes(content, CIPHERTEXT)
        self._check_remainder(content)
        if strange := [key for key in content if key.startswith(PREFIX)]:
            raise ProtocolError(f"expected no more records of fedsens, got {strange}")
        _check_metrics(content)
        return header, ciphertext

    def _check_remainder(self, content: RecordDict) -> None:
        if self._withheld is None:
            self._check_arrays(to_arrays(content.array_records[model_key(content)]))
            return
        if content.array_records:
            raise ProtocolError(
                "expected no plaintext remainder, because clients are to withhold it, got "
                f"{sorted(content.array_records)}; use the same fedsens version on all clients"
            )
        content.update(self._withheld)

    def _check_arrays(self, arrays: Arrays) -> None:
        check_plain(arrays, self._layout, self._mask)
        wrong = [t.name for t in self._layout.tensors if str(arrays[t.name].dtype) != t.dtype]
        if wrong:
            raise LayoutError(f"expected the layout's types, got others in {', '.join(wrong)}")
        if broken := not_finite(arrays):
            raise ValueRangeError(f"expected finite values, got NaN or infinity in {broken}")


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
    forms = Counter(_form(reply.content) for reply in usable)
    usual = forms.most_common(1)[0][0] if forms else frozenset()
    return [reply for reply in usable if _has_form(reply, usual)]


def _has_form(reply: Message, usual: Form) -> bool:
    # The inner strategy would end the run over one client's extra, missing or longer metric.
    if _form(reply.content) == usual:
        return True
    _warn_of_form(reply.metadata.src_node_id)
    return False


def _warn_of_form(node: int) -> None:
    logger.warning(
        "left out the answer of node %s: expected records and metrics of the names and lengths "
        "that most answers have, got others; run the same app on every client",
        node,
    )


def _form(content: RecordDict) -> Form:
    """Names of the records and metrics, and the length of lists: what a mean needs alike."""
    metrics = {
        (key, name, len(value) if isinstance(value, list) else -1)
        for key, record in content.metric_records.items()
        for name, value in record.items()
    }
    return frozenset(metrics | {(key, "", 0) for key in content.array_records})


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
