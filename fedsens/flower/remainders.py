"""A client's plaintext remainder: sent as it is, with noise, or kept back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from fedsens.errors import ProtocolError
from fedsens.files import Arrays
from fedsens.flower.records import Received, to_arrays
from fedsens.protocol.budget import DELTA
from fedsens.protocol.feedback import feed_back
from fedsens.protocol.keystore import KeyStore
from fedsens.protocol.model import split
from fedsens.protocol.private import load_residual, save_residual, spend
from fedsens.protocol.remainder import fresh_generator
from fedsens.protocol.settings import ClientSettings
from fedsens.protocol.terms import RemainderTerms, check_terms

logger = logging.getLogger(__name__)


class Remainder:
    """What one client does with the visible part of one answer."""

    def __init__(self, settings: ClientSettings, store: KeyStore) -> None:
        """Remember what the data owner demands and where the client keeps its files.

        Args:
            settings: the client's settings.
            store: its folder.
        """
        self._settings = settings
        self._store = store
        self._received: Arrays | None = None
        self._keep: Callable[[], None] | None = None

    def begin(self, message: Message, received: Received) -> None:
        """Check what the server wants, and remember the model that an update starts from.

        Args:
            message: the opened message.
            received: what came with it.
        """
        terms = received.header.remainder
        check_terms(terms, received.mask, self._settings.remainder, self._settings.min_noise)
        if terms.remainder != "plain" and message.metadata.message_type == "train":
            self._received = to_arrays(message.content.array_records[received.key])

    def split(
        self, arrays: Arrays, received: Received
    ) -> tuple[Arrays | None, NDArray[np.floating]]:
        """Separate what is encrypted from what leaves in plaintext.

        Args:
            arrays: the trained model.
            received: what came with the model that it started from.

        Returns:
            The remainder to send, None if it is withheld, and the k values to encrypt.

        Raises:
            ProtocolError: the answer has a model, but is none to training.
        """
        terms = received.header.remainder
        if terms.remainder == "plain":
            return split(arrays, received.mask, received.layout)
        if self._received is None:
            raise ProtocolError(
                f"expected a model in answers to training only, because the remainder is "
                f"{terms.remainder}, got one in another answer; send metrics"
            )
        if terms.remainder == "noised":
            plain, masked = split(arrays, received.mask, received.layout)
            before, _ = split(self._received, received.mask, received.layout)
            self._account(terms, received.header.round)
            return terms.noised(before, plain, fresh_generator()), masked
        return None, self._withhold(arrays, self._received, received)

    def _withhold(self, arrays: Arrays, before: Arrays, received: Received) -> NDArray[np.floating]:
        layout, lineage = received.layout, received.header.remainder.lineage
        number, folder = received.header.round, self._store.folder
        residual = load_residual(folder, lineage, layout, number)
        sent, kept = feed_back(
            layout.flatten(before), layout.flatten(arrays), residual, received.mask
        )
        self._keep = partial(save_residual, folder, lineage, layout, number, residual, kept)
        logger.info(
            "round %d remainder: %d parameters withheld, for later rounds",
            number,
            layout.size - received.mask.k,
        )
        return sent

    def keep(self) -> None:
        """Write what is withheld to the client's folder, once the rest is ready to leave."""
        if self._keep is not None:
            self._keep()

    def _account(self, terms: RemainderTerms, server_round: int) -> None:
        cost = terms.cost()
        if cost is None:
            logger.info(
                "round %d remainder: %s noise of scale %g; no privacy budget, because %s",
                server_round,
                terms.noise,
                terms.scale,
                "there is next to no noise" if terms.clip else "the update is not clipped",
            )
            return
        spent = spend(self._store.folder, terms.lineage, cost)
        logger.info(
            "round %d remainder: %s noise, epsilon %.4g, and %.4g for %d answers so far "
            "(delta %g, plaintext remainder alone)",
            server_round,
            terms.noise,
            cost.epsilon(),
            spent.epsilon(),
            spent.answers,
            DELTA if spent.rho else 0,
        )
