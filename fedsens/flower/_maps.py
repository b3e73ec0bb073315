"""Sums of the clients' sensitivity maps, added one by one as they arrive."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from fedsens.crypto import MAP_PARAMETERS, Aggregator
from fedsens.errors import FedSensError, MaskError
from fedsens.flower.records import MAP, PLAIN_MAP, record_to_bytes, take_header
from fedsens.protocol.contributors import Contributors, check_name
from fedsens.protocol.examples import check_weight
from fedsens.protocol.headers import MapReply
from fedsens.protocol.tags import tagged

logger = logging.getLogger(__name__)


class MapSum(ABC):
    """Adds maps; a wrong one is left out by name.

    Attributes:
        weights: contributor to weight of each map that was added.
    """

    def __init__(self) -> None:
        """Start with no map."""
        self.weights: dict[str, float] = {}

    @property
    def used(self) -> int:
        """How many maps were added."""
        return len(self.weights)

    def contributors(self, run: int, reference: float) -> Contributors:
        """Whose maps were added.

        Args:
            run: the Flower run.
            reference: N_ref of the weights.

        Returns:
            The list for the key holder that opens the sum.
        """
        return Contributors(
            run=str(run),
            reference=reference,
            names=tuple(self.weights),
            weights=tuple(self.weights.values()),
        )

    def take(self, node: int, content: RecordDict) -> None:
        """Check one answer and add its map.

        Args:
            node: who answered.
            content: the answer; the map is removed from it.
        """
        try:
            reply = take_header(content, MapReply)
            check_name(reply.contributor, node, self.weights)
            check_weight(reply.weight)
            self._add(content)
            self.weights[reply.contributor] = reply.weight
        except FedSensError as error:
            logger.warning("left out the map of node %s: %s", node, error)

    @abstractmethod
    def _add(self, content: RecordDict) -> None:
        """Add the map of an answer, or raise and leave the sum as it was."""


class EncryptedMapSum(MapSum):
    """The sum of encrypted maps, which the server cannot read."""

    def __init__(self, size: int, fingerprint: str) -> None:
        """Start with no map.

        Args:
            size: P, the number of coordinates.
            fingerprint: of the federation's key.
        """
        super().__init__()
        count = tagged(size, MAP_PARAMETERS)
        self._aggregator = Aggregator(MAP_PARAMETERS, count, fingerprint)

    def _add(self, content: RecordDict) -> None:
        self._aggregator.add(record_to_bytes(content, MAP), fresh=True)

    def result(self) -> bytes:
        """The encrypted sum; empty where no map was added."""
        return self._aggregator.result() if self.used else b""


class PlainMapSum(MapSum):
    """The sum of maps that the server sees."""

    def __init__(self, size: int) -> None:
        """Start with no map.

        Args:
            size: P, the number of coordinates.
        """
        super().__init__()
        self._total = np.zeros(size)

    def _add(self, content: RecordDict) -> None:
        data = record_to_bytes(content, PLAIN_MAP)
        if len(data) != self._total.nbytes:
            raise MaskError(f"expected {self._total.nbytes} bytes, got {len(data)}")
        scores = np.frombuffer(data, "<f8")
        if not (np.isfinite(scores).all() and (scores >= 0).all()):
            raise MaskError("expected finite scores of at least 0, got others")
        with np.errstate(over="ignore"):
            total = self._total + scores
        if not np.isfinite(total).all():
            raise MaskError("expected scores that can be added up, got larger ones")
        self._total = total

    def result(self) -> NDArray[np.float64]:
        """The sum."""
        return self._total
