"""From clients' maps to a mask: the server asks key holders, who apply the policy.

The sum of the maps opens for holders of the key alone, so the choice of the coordinates is theirs
where it depends on maps or on encrypted weights. Where nothing secret enters, the server selects.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

import numpy as np
from flwr.app import RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedsens.config import FedSensConfig
from fedsens.errors import PhaseError, ProtocolError, SumError
from fedsens.flower._agreement import KeyAgreement
from fedsens.flower._maps import MapCollection, Scores
from fedsens.flower._phase import ask_until_two_agree, listed
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

Weights = NDArray[np.floating]
MadeMask = tuple[EncryptionMask, MaskOrigin]
Tied = tuple[tuple[str, str], ...]
# Makes the content that shows clients the current model, for an upload of some of them or for none.
ShowModel = Callable[[list[int]], tuple[RecordDict, ModelHeader]]


class MaskMaker:
    """Makes one mask.

    Attributes:
        reports: what it cost so far.
        contributors: nodes whose maps it is made from, where these are encrypted.
    """

    def __init__(
        self,
        config: FedSensConfig,
        keys: KeyAgreement,
        layout: ParameterLayout,
        tied: Tied,
        left_out: Collection[int] = (),
    ) -> None:
        """Remember what the mask is made from, and the nodes that are asked for nothing."""
        self.contributors = frozenset[int]()
        self._config, self._keys, self._layout, self._tied = config, keys, layout, tied
        self._left_out = set(left_out)
        self.reports: list[PhaseReport] = []

    def make(self, grid: Grid, show: ShowModel, server_round: int, old: EncryptionMask) -> MadeMask:
        """Ask for maps if the policy needs them, and for the mask.

        The mask has exactly the configured number of coordinates, and those of the old one unless
        masks may move.

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
            self.contributors = maps.contributors
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
        new = origin.select(self._layout, scores, weights)
        return new if self._config.moving_masks else new.union(old)

    def _sample(self, grid: Grid) -> list[int]:
        config = self._config
        nodes = self._holders(grid)
        count = max(config.map_min_clients, round(config.map_fraction * len(nodes)))
        if count >= len(nodes):
            return nodes
        return sorted(np.random.default_rng(config.seed).choice(nodes, count, False).tolist())

    def _holders(self, grid: Grid) -> list[int]:
        present = set(grid.get_node_ids())
        return self._keys.distinct(
            sorted(present & set(self._keys.examples) - self._left_out), present
        )

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
        holders = self._holders(grid)

        def question() -> RecordDict:
            content, _ = show([])
            put_header(content, request, REQUEST)
            if scores is not None:
                put_aggregate(content, scores, MAP, MAP_KEY_SUM)
            return content

        asked = ask_until_two_agree(
            grid,
            ("mask", server_round),
            holders,
            question,
            MASK_ACTION,
            config.mask_timeout,
            lambda content: self._read(content, old),
            "gave no mask",
        )
        if asked.answer is not None:
            mask, certificate = asked.answer
            self.reports.append(asked.phase.report(1, lost=0))
            told = {"certificate": certificate, "run": asked.phase.run}
            return mask, origin.model_copy(update=told)
        refusals = len(asked.phase.refused(MODEL_REFUSED))
        if refusals and self.contributors:
            raise SumError(
                f"{refusals} key holders refuse the sum of the maps, which holds nonsense",
                refused=self.contributors,
            )
        raise PhaseError(
            f"expected one mask from 2 of {len(holders)} key holders within "
            f"{config.mask_timeout:g} s each, got {len(asked.found)} different ones: "
            f"{listed(asked.reasons)}; mend these"
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
        """Intersection over union of the mask in use and what the policy chose for the new one."""
        if self._config.moving_masks or not old.k:
            return old.overlap(new)
        return (old.k + self.count - new.k) / new.k
