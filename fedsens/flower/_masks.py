"""From clients' maps to a mask: the server asks key holders, who apply the policy.

The sum of the maps opens for holders of the key alone, so the choice of the coordinates is theirs
where it depends on maps or on encrypted weights. Where nothing secret enters, the server selects.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection

import numpy as np
from flwr.app import RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedsens.config import FedSensConfig
from fedsens.errors import FedSensError, PhaseError, ProtocolError, SumError
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
    model_key,
    put_aggregate,
    put_header,
    record_to_bytes,
    take_header,
    to_arrays,
)
from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask, get_policy, mask_count, select_mask, selectable_count
from fedsens.protocol import (
    Aggregate,
    MaskOrigin,
    MaskReply,
    MaskRequest,
    ModelHeader,
    PhaseReport,
)

logger = logging.getLogger(__name__)

HOLDERS = 2  # key holders that must return the same mask, where there are so many

Weights = NDArray[np.floating]
MadeMask = tuple[EncryptionMask, MaskOrigin]
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

    def make(self, grid: Grid, show: ShowModel, server_round: int, old: EncryptionMask) -> MadeMask:
        """Ask for maps if the policy needs them, and for the mask.

        Args:
            grid: Flower's grid.
            show: makes the content that shows clients the current model.
            server_round: the round that the mask is for.
            old: the mask in use, which the new one covers unless masks may move.

        Returns:
            The mask: exactly the configured number of coordinates, and those of the old one.

        Raises:
            PhaseError: too few clients or no key holder answered, or plain maps do not suffice.
        """
        config, needs = self._config, get_policy(self._config.policy).needs
        size = self._layout.size
        origin = MaskOrigin(
            round=server_round,
            key_index=self._keys.key_index,
            policy=config.policy,
            ratio=config.ratio,
            force=config.force,
            tied=self._tied,
            seed=config.seed,
        )
        if mask_count(config.effective_ratio, size) == size:  # no map could change the answer
            return select_mask(None, self._layout, "all"), origin
        if not needs:  # nothing secret enters, so the server selects by itself
            return self._select(old, origin), origin
        scores: Scores | Aggregate | None = None
        if "scores" in needs:
            nodes = self._sample(grid)
            maps = MapCollection(config, self._keys, size)
            scores, report = maps.collect(grid, nodes, show(nodes), server_round)
            self.reports.append(report)
            self._contributors = maps.contributors
        if isinstance(scores, Aggregate) or (scores is None and not config.server_opens):
            return self._ask_holders(grid, show, scores, origin, old)
        weights = None
        if config.server_opens and "weights" in needs:  # the server knows the whole model
            content, _ = show([])
            weights = self._layout.flatten(to_arrays(content.array_records[model_key(content)]))
        elif "weights" in needs:
            raise PhaseError(
                f"expected encrypted maps for policy {config.policy!r}, which also looks at the "
                "weights, got plain ones; set fedsens.maps to 'encrypted'"
            )
        return self._select(old, origin, scores, weights), origin

    def _select(
        self,
        old: EncryptionMask,
        origin: MaskOrigin,
        scores: Scores | None = None,
        weights: Weights | None = None,
    ) -> EncryptionMask:
        new = selected(origin, self._layout, scores, weights)
        return new if self._config.moving_masks else new.union(old)

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
        self,
        grid: Grid,
        show: ShowModel,
        scores: Aggregate | None,
        origin: MaskOrigin,
        old: EncryptionMask,
    ) -> MadeMask:
        config, server_round = self._config, origin.round
        request = MaskRequest(
            origin=origin,
            moves=config.moving_masks,
            aggregate=None if scores is None else scores.header,
        )
        holders = self._holders(grid)[:ATTEMPTS]
        reasons: dict[int, str] = {}
        votes, refusals, cost = Counter[tuple[bytes, str]](), 0, None
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
                mask, certificate = self._read(answers.get(holder, RecordDict()), old)
            except FedSensError as error:
                reasons[holder] = phase.reasons().get(holder, str(error))
                logger.warning("node %s gave no mask: %s; trying another", holder, error)
                continue
            answer = mask.to_bytes(), certificate
            votes[answer] += 1
            if votes[answer] == min(HOLDERS, len(holders)):  # one alone could choose what is hidden
                self.reports.append(cost.report(1, lost=0))
                told = {"certificate": certificate, "run": cost.run}
                return mask, origin.model_copy(update=told)
        if refusals and self._contributors:
            raise SumError(
                f"{refusals} key holders refuse the sum of the maps, which holds nonsense",
                refused=self._contributors,
            )
        raise PhaseError(
            f"expected one mask from {HOLDERS} of {len(holders)} key holders within "
            f"{config.mask_timeout:g} s each, got {len(votes)} different ones: {listed(reasons)}; "
            "mend these"
        )

    def _read(self, content: RecordDict, old: EncryptionMask) -> tuple[EncryptionMask, str]:
        certificate = take_header(content, MaskReply).certificate
        mask = EncryptionMask.from_bytes(record_to_bytes(content, MASK))
        least, moves = self.count, self._config.moving_masks
        most = least if moves else min(least + old.k, self._layout.size)
        if mask.layout_digest != self._layout.digest or not least <= mask.k <= most:
            raise ProtocolError(
                f"expected a mask of {least} coordinates of this model"
                f"{'' if most == least else f' and up to {old.k} of an earlier one'}, got {mask.k}"
            )
        if not moves and not mask.covers(old):
            raise ProtocolError("expected a mask that covers the one in use, got another")
        return mask, certificate

    @property
    def count(self) -> int:
        """How many coordinates the policy chooses."""
        config, size = self._config, self._layout.size
        count = mask_count(config.effective_ratio, size)
        return selectable_count(self._layout, count, self._tied, config.force)

    def overlap(self, old: EncryptionMask, new: EncryptionMask) -> float:
        """How much of a mask in use the policy would choose again.

        Args:
            old: the mask in use.
            new: the mask that was made; where masks grow it is what the policy chose and the old.

        Returns:
            Intersection over union of the old mask and what the policy chose.
        """
        if self._config.moving_masks or not old.k:
            return old.overlap(new)
        return (old.k + self.count - new.k) / new.k


def selected(
    origin: MaskOrigin,
    layout: ParameterLayout,
    scores: Scores | None = None,
    weights: Weights | None = None,
) -> EncryptionMask:
    """What a policy chooses.

    Args:
        origin: policy, ratio, forced layers, ties and seed.
        layout: the model's.
        scores: of the aggregated map, where the policy needs them.
        weights: of the model, where it needs them.

    Returns:
        The mask.
    """
    return select_mask(
        scores,
        layout,
        origin.policy,
        origin.ratio,
        origin.force,
        seed=origin.seed,
        weights=weights,
        tied=origin.tied,
    )
