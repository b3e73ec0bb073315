"""From clients' maps to a mask, the server's half: it adds ciphertexts and asks one key holder."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import numpy as np
from flwr.app import RecordDict
from flwr.serverapp import Grid

from fedsens.config import FedSensConfig
from fedsens.errors import FedSensError, PhaseError, ProtocolError
from fedsens.flower.agreement import ATTEMPTS, KeyAgreement
from fedsens.flower.exchange import ask, report_of
from fedsens.flower.maps import EncryptedMapSum, PlainMapSum
from fedsens.flower.records import (
    MAP,
    MASK,
    MASK_ACTION,
    REQUEST,
    SENSITIVITY_ACTION,
    bytes_to_record,
    put_header,
    record_to_bytes,
)
from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask, get_policy, mask_count, select_mask
from fedsens.protocol.contributors import Contributors
from fedsens.protocol.headers import MapRequest, MaskRequest
from fedsens.protocol.report import PhaseReport

logger = logging.getLogger(__name__)

Model = Callable[[], RecordDict]  # makes a content with the current model, split and described


class Masking:
    """Makes masks for one run."""

    def __init__(self, config: FedSensConfig, keys: KeyAgreement, layout: ParameterLayout) -> None:
        """Remember what masks are made from.

        Args:
            config: policy, ratio, rule and deadlines.
            keys: who holds the key.
            layout: the model's layout.
        """
        self._config = config
        self._keys = keys
        self._layout = layout
        self.reports: list[PhaseReport] = []

    def make(self, grid: Grid, model: Model, server_round: int) -> EncryptionMask:
        """Ask for maps if the policy needs them, and for the mask.

        Args:
            grid: Flower's grid.
            model: makes the content that shows a client the current model.
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
            return select_mask(
                None, self._layout, config.policy, config.ratio, config.force, seed=config.seed
            )
        scores, contributors = None, None
        if "scores" in needs:
            scores, contributors = self._maps(grid, model, server_round)
        if isinstance(scores, np.ndarray) and "weights" not in needs:  # plain maps
            return select_mask(
                scores, self._layout, config.policy, config.ratio, config.force, seed=config.seed
            )
        if isinstance(scores, np.ndarray):
            raise PhaseError(
                f"expected encrypted maps for policy {config.policy!r}, which also looks at the "
                "weights, got plain ones; set fedsens.maps to 'encrypted'"
            )
        return self._ask_holder(grid, model, scores, contributors, server_round)

    def _maps(
        self, grid: Grid, model: Model, server_round: int
    ) -> tuple[bytes | np.ndarray, Contributors]:
        config = self._config
        nodes = self._sample(grid)
        content = model()
        reference = self._keys.reference(nodes)
        request = MapRequest(rule=config.rule, maps=config.maps, reference=reference)
        put_header(content, request, REQUEST)
        questions, seconds = dict.fromkeys(nodes, content), 0.0
        size = self._layout.size
        plain = config.maps == "plain"
        maps = PlainMapSum(size) if plain else EncryptedMapSum(size, self._keys.fingerprint)

        def take(node: int, content: RecordDict) -> None:
            nonlocal seconds
            started = time.process_time()
            maps.take(node, content)
            seconds += time.process_time() - started

        answers = ask(grid, questions, SENSITIVITY_ACTION, config.map_timeout, take)
        result, used = maps.result(), maps.used
        self.reports.append(report_of("map", server_round, answers, used, seconds))
        if used < config.map_min_clients:
            raise PhaseError(
                f"expected maps from at least {config.map_min_clients} clients, got {used}; see "
                "the warnings above, or lower fedsens.map-min-clients"
            )
        return result, maps.contributors(answers.run, reference)

    def _sample(self, grid: Grid) -> list[int]:
        config = self._config
        nodes = sorted(set(grid.get_node_ids()) & set(self._keys.examples))
        count = max(config.map_min_clients, round(config.map_fraction * len(nodes)))
        if count >= len(nodes):
            return nodes
        return sorted(np.random.default_rng(config.seed).choice(nodes, count, False).tolist())

    def _ask_holder(
        self,
        grid: Grid,
        model: Model,
        scores: bytes | None,
        contributors: Contributors | None,
        server_round: int,
    ) -> EncryptionMask:
        config = self._config
        request = MaskRequest(
            policy=config.policy,
            ratio=config.ratio,
            force=config.force,
            seed=config.seed,
            scores=scores is not None,
            contributors=contributors,
        )
        holders = sorted(set(grid.get_node_ids()) & set(self._keys.examples))
        for holder in holders[:ATTEMPTS]:
            content = model()
            put_header(content, request, REQUEST)
            if scores is not None:
                content[MAP] = bytes_to_record(scores)
            answers = ask(grid, {holder: content}, MASK_ACTION, config.mask_timeout)
            try:
                mask = self._read(answers.content.get(holder, RecordDict()))
            except FedSensError as error:
                logger.warning("node %s gave no mask: %s; trying another", holder, error)
                continue
            self.reports.append(report_of("mask", server_round, answers, 1))
            return mask
        raise PhaseError(
            f"expected a mask from one of {len(holders[:ATTEMPTS])} key holders within "
            f"{config.mask_timeout:g} s each, got none; see the warnings above"
        )

    def _read(self, content: RecordDict) -> EncryptionMask:
        mask = EncryptionMask.from_bytes(record_to_bytes(content, MASK))
        expected = mask_count(self._config.effective_ratio, self._layout.size)
        if mask.layout_digest != self._layout.digest or mask.k != expected:
            raise ProtocolError(
                f"expected a mask of {expected} coordinates of this model, got {mask.k}"
            )
        return mask
