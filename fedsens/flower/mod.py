"""SelectiveEncryptionMod: the client half, one outermost mod."""

from __future__ import annotations

import logging

from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable

from fedsens.errors import FedSensError
from fedsens.flower.client import Client, conceal, refuse
from fedsens.flower.records import QUERIES

logger = logging.getLogger(__name__)


class SelectiveEncryptionMod:
    """Decrypts the model before the user's function runs and encrypts its answer.

    It must be the outermost mod, so that others (differential privacy, say) see whole models::

        app = ClientApp(mods=[SelectiveEncryptionMod()])

    It fails closed: a message without fedsens's records, with a mask below the client's minimum
    or with a model that does not open is answered with an error, and so is an answer that cannot
    be encrypted. An exception of the user's function is logged here and reported to the server by
    its type only, because its text could quote parameters.
    """

    def __init__(self, min_ratio: float = 0.0) -> None:
        """Configure the app's own demands.

        Args:
            min_ratio: the smallest share of encrypted parameters that this app accepts. The data
                owner can raise it, not lower it (``fedsens-min-ratio``).
        """
        self._min_ratio = min_ratio

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Handle one message.

        Args:
            message: from the server.
            context: Flower's context.
            call_next: the next mod, or the user's function.

        Returns:
            The protected answer, or an error.
        """
        if message.metadata.message_type in QUERIES:
            return call_next(message, context)  # install()'s handlers guard themselves
        try:
            return self._handle(message, context, call_next)
        except FedSensError as error:
            return refuse(message, error)
        except Exception as error:
            logger.exception("%s failed", message.metadata.message_type)
            return conceal(message, error)

    def _handle(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        client = Client(context, self._min_ratio)
        received = client.open(message.content)
        client.check_mask(received.mask)
        client.begin(message, received)
        if received.mask.k:
            client.store.bind_mask(received.header)
        try:
            reply = call_next(message, context)
        except Exception as error:  # an error of fedsens too, since the app may have written it
            logger.exception("the app's %s function failed", message.metadata.message_type)
            return conceal(message, error)
        if not reply.has_error():
            client.protect(reply, received)
        return reply
