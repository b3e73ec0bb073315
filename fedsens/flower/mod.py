"""SelectiveEncryptionMod: the client half, one outermost mod."""

from __future__ import annotations

import logging

from flwr.app import Context, Error, Message
from flwr.clientapp.typing import ClientAppCallable

from fedsens.errors import FedSensError
from fedsens.flower.client import RAISED, Client, refuse
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
            client = Client(context, self._min_ratio)
            received = client.open(message.content)
            client.check_mask(received.mask)
        except FedSensError as error:
            return refuse(message, error)
        reply = _run(message, context, call_next)
        if reply.has_error():
            return reply
        try:
            client.protect(reply, received)
        except FedSensError as error:
            return refuse(message, error)
        return reply


def _run(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    try:
        return call_next(message, context)
    except Exception as error:
        logger.exception("the app's %s function failed", message.metadata.message_type)
        reason = f"{type(error).__name__} in the app; the client's own log has the details"
        return Message(Error(RAISED, reason), reply_to=message)
