"""Metrics of an evaluation as sums that the server opens, while each client's own stay encrypted.

They go the way of an update (:mod:`fedsens.flower._uploads`): a vector under a one-time secret,
given for one list. A client's vector is its share s_i = n_i / N_ref of the examples and s_i m_i for
each metric m, all clients with one weight, so that nothing but sum n_i and sum n_i m_i shows.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedsens.crypto import MAP_PARAMETERS, Aggregator
from fedsens.errors import FedSensError, PhaseError, ProtocolError, SumError, ValueRangeError
from fedsens.flower._phase import Phase
from fedsens.flower._records import (
    CIPHERTEXT,
    Received,
    bytes_to_record,
    examples_of,
    put_header,
    record_to_bytes,
    take_header,
)
from fedsens.flower._uploads import UploadSum, collect_keys
from fedsens.protocol import Party, RoundContext, UploadHeader, check_weight

if TYPE_CHECKING:
    from fedsens.flower._client import Client

logger = logging.getLogger(__name__)

# The record's name, and names and lengths of the metrics in it; 0 for a number.
Schema = tuple[str, tuple[tuple[str, int], ...]]
LARGEST = MAP_PARAMETERS.value_range


def protect_metrics(
    reply: Message, received: Received, context: RoundContext, client: Client
) -> None:
    """Encrypt the metrics of an answer, so that none leaves in plaintext; the client's half.

    Raises:
        ProtocolError: the answer holds something else than one MetricRecord of numbers.
        ValueRangeError: a metric is no number, or too large.
    """
    content, header = reply.content, received.header
    if len(content.metric_records) != 1 or len(content) != 1:
        raise ProtocolError(
            "expected one MetricRecord and nothing else in an answer whose metrics are summed "
            f"(fedsens.metrics), got {sorted(content)}; return the rest by another message"
        )
    share = examples_of(content, header.weighted_by) / header.reference
    check_weight(share)
    ((record, metrics),) = content.metric_records.items()
    own = {name: value for name, value in sorted(metrics.items()) if name != header.weighted_by}
    lengths = tuple((n, len(v) if isinstance(v, list) else 0) for n, v in own.items())
    names = [header.weighted_by, *(n for n, length in lengths for _ in range(max(1, length)))]
    if empty := [name for name, value in own.items() if value == []]:
        raise ProtocolError(f"expected no empty lists as metrics, got {empty}; leave them out")
    flat = [float(x) for v in own.values() for x in (v if isinstance(v, list) else [v])]
    values = share * np.array([1.0, *flat])
    if len(values) > MAP_PARAMETERS.degree:
        raise ProtocolError(
            f"expected at most {MAP_PARAMETERS.degree - 1} numbers as metrics, got {len(flat)}"
        )
    with np.errstate(invalid="ignore"):
        wrong = dict.fromkeys(
            n for n, x in zip(names, values, strict=True) if not abs(x) <= LARGEST
        )
    if wrong:
        raise ValueRangeError(
            f"expected finite metrics of at most {LARGEST:g}, times this client's share of the "
            f"examples, got others in {', '.join(map(repr, wrong))}; return a logarithm, or "
            "nothing where there is no value"
        )
    weight = 1 / len(header.cohort)
    told, ciphertext = client.uploads.encrypt(context, header, values, weight, names.__getitem__)
    content.clear()
    content[CIPHERTEXT] = bytes_to_record(ciphertext)
    put_header(content, told.model_copy(update={"record": record, "metrics": lengths}))


def keep_count_only(content: RecordDict, weighted_by: str) -> None:
    """Leave nothing of metrics but the number of examples, which is the weight of an update.

    Raises:
        ProtocolError: it is no whole number, as a loss that the server calls so would be.
    """
    told = [m[weighted_by] for m in content.metric_records.values() if weighted_by in m]
    if not all(isinstance(each, int | float) and float(each).is_integer() for each in told):
        raise ProtocolError(
            f"expected a whole number of examples in {weighted_by!r}, because metrics are summed "
            "and this one leaves in plaintext, got another; have training count its examples there"
        )
    for name, metrics in content.metric_records.items():
        content[name] = MetricRecord({k: v for k, v in metrics.items() if k == weighted_by})


class SummedMetrics:
    """The server's half: adds encrypted metrics, and opens the sum.

    Attributes:
        gave: nodes whose keys came.
        withheld: nodes that gave no key.
    """

    def __init__(self, phase: Phase, parties: Mapping[int, Party], least: int) -> None:
        """Add the answers of an evaluation."""
        assert phase.header is not None
        self._phase, self._header = phase, phase.header
        self._parties, self._least = parties, least
        self._sums: dict[Schema, UploadSum] = {}
        self.gave, self.withheld = frozenset[int](), frozenset[int]()

    def take(self, node: int, content: RecordDict) -> None:
        """Add an answer; a wrong one is left out by name."""
        try:
            self._add(node, content)
        except FedSensError as error:
            logger.warning("left out the metrics of node %s: %s", node, error)

    def _add(self, node: int, content: RecordDict) -> None:
        header = take_header(content, UploadHeader)
        ciphertext = record_to_bytes(content, CIPHERTEXT)
        schema = header.record, header.metrics
        size = 1 + sum(max(1, length) for _, length in header.metrics)
        if size > MAP_PARAMETERS.degree or header.weight != 1 / len(self._header.cohort):
            raise ProtocolError("expected metrics of the weight of all others, got others")
        new = UploadSum(
            self._phase.context("metrics"), Aggregator(MAP_PARAMETERS, size), self._parties
        )
        uploads = self._sums.get(schema, new)
        uploads.check(node, header)
        uploads.add(node, header, ciphertext)
        self._sums[schema] = uploads

    def replies(self, grid: Grid, timeout: float, replies: Mapping[int, Message]) -> list[Message]:
        """Ask for the keys, open the sum, and put the means into the answers that count.

        Each gets an equal share of the examples, so that any mean of them is the mean of all. There
        are none where they are too few, or a key is missing.

        Raises:
            SumError: the sum opens to nothing that honest clients could have made.
        """
        schema = max(self._sums, key=lambda each: len(self._sums[each].headers), default=None)
        for other, added in self._sums.items():
            for node in added.headers if other != schema else ():
                logger.warning(
                    "left out the metrics of node %s: expected those that most answers have, got "
                    "others; run the same app on every client",
                    node,
                )
        count = 0 if schema is None else len(self._sums[schema].headers)
        if schema is None or count < self._least:
            logger.warning(
                "round %d has no metrics: %d answers can be added, %d are needed "
                "(fedsens.train-min-clients)",
                self._phase.round,
                count,
                self._least,
            )
            return []
        uploads = self._sums[schema]
        asked = self._phase.name, self._phase.round
        self._phase.absorb(collect_keys(grid, asked, [uploads], timeout))
        self.gave = frozenset(uploads.answers)
        self.withheld = frozenset(uploads.headers) - self.gave
        try:
            mean = uploads.open_here()
        except SumError:
            raise
        except PhaseError as error:
            logger.warning("round %d has no metrics: %s", self._phase.round, error)
            return []
        if not mean[0] > 0:
            raise SumError("expected a positive number of examples", refused=uploads.headers)
        record, metrics = schema[0], self._metrics(schema, mean)
        good = [replies[node] for node in replies if node in uploads.headers]
        for reply in good:
            reply.content = RecordDict({record: MetricRecord(metrics)})
        return good

    def _metrics(
        self, schema: Schema, mean: NDArray[np.floating]
    ) -> dict[str, int | float | list[int] | list[float]]:
        values, start = mean[1:] / mean[0], 0
        told: dict[str, int | float | list[int] | list[float]] = {
            self._header.weighted_by: float(mean[0]) * self._header.reference
        }
        for name, length in schema[1]:
            part = values[start : start + max(1, length)].tolist()
            told[name] = part if length else part[0]
            start += len(part)
        return told
