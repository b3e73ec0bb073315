"""Sensitivity maps: each client's own, encrypted whole, added up unseen.

With ``maps = "plain"``, for research, the server sees and adds the maps themselves.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedsens.config import FedSensConfig
from fedsens.crypto import MAP_PARAMETERS, Aggregator, CkksParameters
from fedsens.errors import (
    DowngradeError,
    FedSensError,
    MaskError,
    PhaseError,
    ProtocolError,
)
from fedsens.flower._agreement import KeyAgreement
from fedsens.flower._phase import Phase, ask, listed
from fedsens.flower._records import (
    MAP,
    PLAIN_MAP,
    REQUEST,
    SENSITIVITY_ACTION,
    bytes_to_record,
    put_header,
    record_to_bytes,
    take_header,
)
from fedsens.flower._uploads import UploadSum, collect_keys
from fedsens.protocol import (
    Aggregate,
    MapRequest,
    ModelHeader,
    PhaseReport,
    PlainMapHeader,
    UploadHeader,
    check_weight,
)
from fedsens.protocol import Phase as PhaseName

if TYPE_CHECKING:
    from fedsens.flower._client import Client
    from fedsens.sensitivity import SensitivityMap

logger = logging.getLogger(__name__)

SensitivityFn = Callable[[Message, Context], "SensitivityMap"]
ExamplesFn = Callable[[Context], int]
Scores = NDArray[np.floating]


class MapCollection:
    """Asks clients for their maps and adds them; one for each mask that is made.

    Attributes:
        contributors: nodes whose maps are in the encrypted sum.
    """

    def __init__(self, config: FedSensConfig, keys: KeyAgreement, size: int) -> None:
        """Remember how maps are made."""
        self._config, self._keys, self._size = config, keys, size
        self._plain = np.zeros(size)
        self._used = self._probed = 0
        self._reasons: dict[int, str] = {}
        self._uploads: UploadSum | None = None
        self.contributors: frozenset[int] = frozenset()

    def collect(
        self, grid: Grid, nodes: list[int], shown: tuple[RecordDict, ModelHeader], number: int
    ) -> tuple[Scores | Aggregate, PhaseReport]:
        """The sum of the clients' maps, each times its weight, and what it cost.

        The server sees it if maps are plain or if it opens sums (then the mean). ``shown`` is the
        content that shows these clients the current model, and its header.

        Raises:
            PhaseError: too few clients answered, or gave their keys.
        """
        config, (content, header) = self._config, shown
        put_header(content, MapRequest(rule=config.rule, maps=config.maps), REQUEST)
        phase, _ = ask(
            grid,
            ("map", number),
            dict.fromkeys(nodes, content),
            SENSITIVITY_ACTION,
            config.map_timeout,
            self._take,
            header,
        )
        if self._used < config.map_min_clients:
            raise PhaseError(
                f"expected maps from at least {config.map_min_clients} clients, got {self._used}: "
                f"{listed(phase.reasons() | self._reasons)}; mend these"
                f"{', or lower fedsens.map-min-clients' if self._used else ''}"
            )
        if self._uploads is None:
            return self._plain, phase.report(self._used, probed=self._probed)
        self._uploads.check_weights(config.map_min_clients)
        total: Scores | Aggregate
        name: tuple[PhaseName, int] = ("map", number)
        phase.absorb(collect_keys(grid, name, [self._uploads], config.key_timeout))
        if config.server_opens:
            total = self._uploads.open_here()
            drop_noise(total, MAP_PARAMETERS, self._uploads.weights)
        else:
            total = self._uploads.open_for_holders()
        self.contributors = frozenset(self._uploads.headers)
        return total, phase.report(
            self._used,
            seconds={"add_seconds": self._uploads.seconds},
            encrypted=self._size,
            probed=self._probed,
        )

    def _take(self, phase: Phase, node: int, content: RecordDict) -> None:
        """Check one answer and add its map; a wrong one is left out by name."""
        try:
            if self._config.maps == "plain":
                probed = self._add_plain(content)
            else:
                probed = self._add_encrypted(phase, node, content)
            self._used += 1
            self._probed += probed
        except FedSensError as error:
            self._reasons[node] = str(error)
            logger.warning("left out the map of node %s: %s", node, error)

    def _add_encrypted(self, phase: Phase, node: int, content: RecordDict) -> bool:
        """Add an encrypted map; whether probes estimate it."""
        if self._uploads is None:
            aggregator = Aggregator(MAP_PARAMETERS, self._size)
            self._uploads = UploadSum(phase.context("map"), aggregator, self._keys.parties)
        header = take_header(content, UploadHeader)
        self._uploads.check(node, header)
        self._uploads.add(node, header, record_to_bytes(content, MAP))
        return header.probed

    def _add_plain(self, content: RecordDict) -> bool:
        """Add a map that the server may see; whether probes estimate it."""
        header = take_header(content, PlainMapHeader)
        check_weight(header.weight)
        data = record_to_bytes(content, PLAIN_MAP)
        if len(data) != self._plain.nbytes:
            raise MaskError(f"expected {self._plain.nbytes} bytes, got {len(data)}")
        scores = np.frombuffer(data, "<f8")
        if not (np.isfinite(scores).all() and (scores >= 0).all()):
            raise MaskError("expected finite scores of at least 0, got others")
        with np.errstate(over="ignore"):
            total = self._plain + scores
        if not np.isfinite(total).all():
            raise MaskError("expected scores that can be added up, got larger ones")
        self._plain = total
        return header.probed


def drop_noise(scores: Scores, parameters: CkksParameters, weights: Collection[float]) -> None:
    """Make exact zeros in place where nothing is above the codec's noise: ties then go by index."""
    scores[scores < parameters.error_bound(len(weights)) / math.fsum(weights)] = 0.0


def _check_asked(header: ModelHeader, client: Client) -> None:
    """Refuse a map where every sum must have noise, which that of maps has not."""
    if header.dp is not None or client.settings.min_dp_noise > 0:
        raise DowngradeError(
            "expected no question for a map, whose sum would have no noise, in a run with central "
            "differential privacy (fedsens.dp-noise), got one; set fedsens.ratio to 1"
        )


def answer_map(
    message: Message,
    context: Context,
    client: Client,
    sensitivity: SensitivityFn | None,
    examples: ExamplesFn,
) -> RecordDict:
    """Compute this client's map and send it; the client's half.

    Raises:
        ProtocolError: the app has no sensitivity function, or no examples.
        DowngradeError: the server wants to see the map, which the data owner has not allowed, or
            its sum without noise.
    """
    if sensitivity is None:
        raise ProtocolError("expected a sensitivity function in install(), got None; add one")
    received = client.open(message.content)
    request = take_header(message.content, MapRequest, REQUEST)
    header, number = received.header, examples(context)
    _check_asked(header, client)
    if number <= 0:
        raise ProtocolError(f"expected a positive number of examples for a map, got {number}")
    plain = request.maps == "plain"
    if plain and not client.settings.allow_plain_maps:
        raise DowngradeError(
            "expected a request for an encrypted map, got one for a plain map, which would show "
            "the server what this client's data are sensitive to; set the server's fedsens.maps to "
            "encrypted, or allow it with fedsens-allow-plain-maps"
        )
    bound = None if plain else client.uploads.begin("map", received)
    key = next(iter(message.content.config_records), "config")  # as the strategy names it
    options = {"rule": request.rule, "round": header.round, "timeout": message.metadata.ttl}
    config = message.content.config_records.get(key, ConfigRecord())
    message.content[key] = ConfigRecord({**config, **options})
    started = time.process_time()
    smap = sensitivity(message, context)
    seconds = time.process_time() - started
    flat, weight = smap.flat(received.layout), number / header.reference
    told = {
        "samples": smap.count,
        "probed": smap.meta.get("rows", "exact") != "exact",
        "work_seconds": seconds,
    }
    answer = RecordDict()
    if bound is None:
        encoded = np.asarray(flat * weight, "<f8").tobytes()
        put_header(answer, PlainMapHeader.model_validate({"weight": weight, **told}))
        answer[PLAIN_MAP] = bytes_to_record(encoded)
    else:
        upload, encoded = client.uploads.encrypt(
            bound, header, np.asarray(flat, np.float64), weight, received.layout.name_of
        )
        put_header(answer, upload.model_copy(update=told))
        answer[MAP] = bytes_to_record(encoded)
    logger.info(
        "round %d map: %d samples, rows %s, %s, %d B up, %.2f s",
        header.round,
        smap.count,
        smap.meta.get("rows", "unknown"),
        request.maps,
        len(encoded),
        seconds,
    )
    return answer
