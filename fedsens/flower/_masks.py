"""From clients' maps to a mask: the server asks key holders, who apply the policy.

The sum of the maps opens for holders of the key alone, so the choice of the coordinates is theirs
where it depends on maps or on encrypted weights. Where nothing secret enters, the server selects.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedsens.config import FedSensConfig
from fedsens.errors import FedSensError, MapError, PhaseError, ProtocolError
from fedsens.flower._keys import ATTEMPTS, KeyAgreement
from fedsens.flower._maps import MapCollection, Scores
from fedsens.flower._phase import ask, listed
from fedsens.flower._records import (
    MAP,
    MAP_KEY_SUM,
    MASK,
    MASK_ACTION,
    MODEL_REFUSED,
    REQUEST,
    bytes_to_record,
    model_key,
    put_aggregate,
    put_header,
    record_to_bytes,
    take_aggregate,
    take_header,
    to_arrays,
)
from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask, get_policy, mask_count, select_mask, selectable_count
from fedsens.protocol import Aggregate, MaskRequest, ModelHeader, PhaseReport

if TYPE_CHECKING:
    from fedsens.flower._client import Client

logger = logging.getLogger(__name__)

HOLDERS = 2  # key holders that must return the same mask, where there are so many

Weights = NDArray[np.floating]
Tied = tuple[tuple[str, str], ...]
# Makes the content that shows clients the current model, for an upload of some of them or for none.
ShowModel = Callable[[list[int]], tuple[RecordDict, ModelHeader]]


class MaskMaker:
    """Makes one mask.

    Attributes:
        reports: what it cost so far.
    """

    def __init__(
        self,
        config: FedSensConfig,
        keys: KeyAgreement,
        layout: ParameterLayout,
        tied: Tied,
        left_out: Collection[int] = (),
    ) -> None:
        """Remember what the mask is made from.

        Args:
            config: policy, ratio, rule and deadlines.
            keys: who holds the key.
            layout: the model's layout.
            tied: pairs of tensors that are one parameter under two names.
            left_out: nodes that are asked for nothing.
        """
        self._contributors = frozenset[int]()
        self._config, self._keys, self._layout, self._tied = config, keys, layout, tied
        self._left_out = set(left_out)
        self.reports: list[PhaseReport] = []

    def make(self, grid: Grid, show: ShowModel, server_round: int) -> EncryptionMask:
        """Ask for maps if the policy needs them, and for the mask.

        Args:
            grid: Flower's grid.
            show: makes the content that shows clients the current model.
            server_round: the round that the mask is for.

        Returns:
            A mask of exactly the configured number of coordinates.

        Raises:
            PhaseError: too few clients or no key holder answered, or plain maps do not suffice.
        """
        config, needs = self._config, get_policy(self._config.policy).needs
        size = self._layout.size
        if mask_count(config.effective_ratio, size) == size:  # no map could change the answer
            return select_mask(None, self._layout, "all")
        if not needs:  # nothing secret enters, so the server selects by itself
            return self._select(None)
        scores: Scores | Aggregate | None = None
        if "scores" in needs:
            nodes = self._sample(grid)
            maps = MapCollection(config, self._keys, size)
            scores, report = maps.collect(grid, nodes, show(nodes), server_round)
            self.reports.append(report)
            self._contributors = maps.contributors
        if isinstance(scores, Aggregate) or (scores is None and not config.server_opens):
            return self._ask_holders(grid, show, scores, server_round)
        weights = None
        if config.server_opens and "weights" in needs:  # the server knows the whole model
            content, _ = show([])
            weights = self._layout.flatten(to_arrays(content.array_records[model_key(content)]))
        elif "weights" in needs:
            raise PhaseError(
                f"expected encrypted maps for policy {config.policy!r}, which also looks at the "
                "weights, got plain ones; set fedsens.maps to 'encrypted'"
            )
        return self._select(scores, weights)

    def _select(self, scores: Scores | None, weights: Weights | None = None) -> EncryptionMask:
        config = self._config
        return select_mask(
            scores,
            self._layout,
            config.policy,
            config.ratio,
            config.force,
            seed=config.seed,
            weights=weights,
            tied=self._tied,
        )

    def _sample(self, grid: Grid) -> list[int]:
        config = self._config
        nodes = self._keys.distinct(self._holders(grid))
        count = max(config.map_min_clients, round(config.map_fraction * len(nodes)))
        if count >= len(nodes):
            return nodes
        return sorted(np.random.default_rng(config.seed).choice(nodes, count, False).tolist())

    def _holders(self, grid: Grid) -> list[int]:
        return sorted(set(grid.get_node_ids()) & set(self._keys.examples) - self._left_out)

    def _ask_holders(
        self, grid: Grid, show: ShowModel, scores: Aggregate | None, server_round: int
    ) -> EncryptionMask:
        config = self._config
        request = MaskRequest(
            policy=config.policy,
            ratio=config.ratio,
            force=config.force,
            tied=self._tied,
            seed=config.seed,
            aggregate=None if scores is None else scores.header,
        )
        holders = self._holders(grid)[:ATTEMPTS]
        reasons: dict[int, str] = {}
        votes, refusals, cost = Counter[bytes](), 0, None
        for holder in holders:
            content, _ = show([])
            put_header(content, request, REQUEST)
            if scores is not None:
                put_aggregate(content, scores, MAP, MAP_KEY_SUM)
            phase, answers = ask(
                grid, ("mask", server_round), {holder: content}, MASK_ACTION, config.mask_timeout
            )
            refusals += len(phase.refused(MODEL_REFUSED))
            if cost is None:
                cost = phase
            else:
                cost.absorb(phase)
            try:
                mask = self._read(answers.get(holder, RecordDict()))
            except FedSensError as error:
                reasons[holder] = phase.reasons().get(holder, str(error))
                logger.warning("node %s gave no mask: %s; trying another", holder, error)
                continue
            data = mask.to_bytes()
            votes[data] += 1
            if votes[data] == min(HOLDERS, len(holders)):  # one alone could choose what is hidden
                self.reports.append(cost.report(1, lost=0))
                return mask
        if refusals and self._contributors:
            raise MapError(
                f"{refusals} key holders refuse the sum of the maps, which holds nonsense",
                refused=self._contributors,
            )
        raise PhaseError(
            f"expected one mask from {HOLDERS} of {len(holders)} key holders within "
            f"{config.mask_timeout:g} s each, got {len(votes)} different ones: {listed(reasons)}; "
            "mend these"
        )

    def _read(self, content: RecordDict) -> EncryptionMask:
        mask = EncryptionMask.from_bytes(record_to_bytes(content, MASK))
        config, layout = self._config, self._layout
        count = mask_count(config.effective_ratio, layout.size)
        expected = selectable_count(layout, count, self._tied, config.force)
        if mask.layout_digest != self._layout.digest or mask.k != expected:
            raise ProtocolError(
                f"expected a mask of {expected} coordinates of this model, got {mask.k}"
            )
        return mask


def answer_mask(content: RecordDict, client: Client) -> RecordDict:
    """Open the sum of the maps and apply the policy; the client's half.

    Args:
        content: the message's content.
        client: this client, which must hold the key.

    Returns:
        The answer.
    """
    received = client.open(content)
    request = take_header(content, MaskRequest, REQUEST)
    layout, scores, weights = received.layout, None, None
    if request.aggregate is not None:
        aggregate = take_aggregate(content, request.aggregate, MAP, MAP_KEY_SUM)
        scores = client.open_map(aggregate, received)
    if "weights" in get_policy(request.policy).needs:
        weights = layout.flatten(to_arrays(content.array_records[received.key]))
    mask = select_mask(
        scores,
        layout,
        request.policy,
        request.ratio,
        request.force,
        seed=request.seed,
        weights=weights,
        tied=request.tied,
    )
    client.check_mask(mask)
    logger.info(
        "round %d mask: %d of %d parameters by policy %s, digest %s",
        received.header.round,
        mask.k,
        mask.size,
        request.policy,
        mask.digest[:16],
    )
    return RecordDict({MASK: bytes_to_record(mask.to_bytes())})
