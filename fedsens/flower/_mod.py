"""SelectiveEncryptionMod and install: the client half of an app."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection
from numbers import Real

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

from fedsens._files import Arrays
from fedsens.errors import (
    CheckpointError,
    ConfigurationError,
    ContributorsError,
    DataError,
    DowngradeError,
    FedSensError,
    KeyFileError,
    ModelError,
    ProtocolError,
)
from fedsens.flower._agreement import answer_keys
from fedsens.flower._client import Client
from fedsens.flower._client_masks import answer_mask, check_origin
from fedsens.flower._maps import ExamplesFn, SensitivityFn, answer_map
from fedsens.flower._metrics import protect_metrics
from fedsens.flower._records import (
    HEADER,
    KEY_SUM_ACTION,
    KEYS_ACTION,
    LIST_REFUSED,
    MASK_ACTION,
    MODEL_REFUSED,
    QUERIES,
    RAISED,
    REFUSED,
    REKEY_ACTION,
    SENSITIVITY_ACTION,
    to_arrays,
)
from fedsens.flower._rotation import answer_rekey
from fedsens.flower._uploads import answer_key_sum

logger = logging.getLogger(__name__)

DEFAULT = "default"  # Flower's name of what has none
OF_FILES = (CheckpointError, DataError, KeyFileError)  # whose texts name the owner's files
Handler = Callable[[Message, Context, Client], RecordDict]


class SelectiveEncryptionMod:
    """Decrypts the model before the user's function runs and encrypts its answer.

    It must be the outermost mod, so that others (differential privacy, say) see whole models::

        app = ClientApp(mods=[SelectiveEncryptionMod()])

    It fails closed: a message without fedsens's records, with a mask below the client's minimum
    or with a model that does not open is answered with an error, and so is an answer that cannot
    be encrypted. An exception of the user's function is logged here and reported to the server by
    its type only, because its text could quote parameters.
    """

    def __init__(self, min_ratio: float = 0.0, *, pass_queries: Collection[str] = ()) -> None:
        """Configure the app's own demands.

        Args:
            min_ratio: the smallest share of encrypted parameters that this app accepts. The data
                owner can raise it, not lower it (``fedsens-min-ratio``).
            pass_queries: names of the app's own queries that carry no model and pass as they are,
                ``{"labels"}`` for ``@app.query("labels")``, ``{"default"}`` for ``@app.query()``.
        """
        self.min_ratio = min_ratio
        names = [pass_queries] if isinstance(pass_queries, str) else pass_queries
        self._passed = frozenset(name.removeprefix("query.") for name in names)

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
            category, _, name = message.metadata.message_type.partition(".")
            if category == "query" and (name or DEFAULT) in self._passed:
                return self._pass(message, context, call_next)
            if category == "query" and HEADER not in message.content:
                return refusal_reply(message, _own_query(name or DEFAULT))
            return self._handle(message, context, call_next)
        except FedSensError as error:
            return refusal_reply(message, error)
        except Exception as error:
            logger.exception("%s failed", message.metadata.message_type)
            return error_reply(message, error)

    def _handle(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        client = Client(context, self.min_ratio)
        received = client.open(message.content)
        client.check_mask(received.mask)
        client.check_metrics(received.header)
        category = message.metadata.message_type.partition(".")[0]  # of "evaluate.name" as well
        if category != "train":
            client.check_trained(received)
        else:
            client.uploads.check_private(received)
        if received.mask.k:
            received.layout.check_real()
        settings, policy = client.settings, received.header.remainder.policy()
        policy.check(received.mask, settings.remainder, settings.min_noise)
        bound, before = None, None
        if received.mask.k and message.metadata.message_type == "train":
            check_origin(received, client)
            policy.check_budget(received.mask, client.store.folder, settings.max_epsilon)
            bound = client.uploads.begin("update", received)
            needed = policy.needs_received or received.header.dp is not None
            before = self._before(message, received.key) if needed else None
        if category == "evaluate" and received.header.metrics == "summed":
            bound = client.uploads.begin("metrics", received)
        reply = _called(call_next, message, context)
        if reply.has_error():
            return reply
        # The app is done with the model that it got, which may be large, unless it answers with it.
        if reply.content is not message.content:
            message.content.pop(received.key, None)
        if bound is not None and bound.kind == "metrics":
            protect_metrics(reply, received, bound, client)
        else:
            client.uploads.protect(reply, received, bound, before)
        return reply

    @staticmethod
    def _pass(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Let a query of the app's own through, whose answer must hold no arrays."""
        reply = _called(call_next, message, context)
        if reply.has_content() and reply.content.array_records:
            raise ProtocolError(
                "expected an answer without arrays to a query that passes unencrypted, got "
                f"{sorted(reply.content.array_records)}; send metrics, or leave the query out of "
                "pass_queries"
            )
        return reply

    @staticmethod
    def _before(message: Message, key: str) -> Arrays:
        return to_arrays(message.content.array_records[key])


def install(
    app: ClientApp,
    sensitivity: SensitivityFn | None,
    examples: ExamplesFn,
) -> None:
    """Let a ClientApp take part in key agreement, sensitivity maps and masks.

    Mods never see message types without a registered function, so the app registers these next to
    its own ``train`` and ``evaluate``.

    Args:
        app: the ClientApp; its mods must include :class:`SelectiveEncryptionMod`.
        sensitivity: computes this client's map. It gets a message like ``train``, with the whole
            model and the strategy's names of records, and beside the ``train_config`` its
            ConfigRecord holds ``rule`` and ``timeout``, the seconds that the server waits for the
            answer. None if the app is used with policies that need no map only.
        examples: this client's number of training examples.

    Raises:
        ConfigurationError: the app lacks the mod, so that it would send plaintext, or has several.
    """
    mods = [mod for mod in _mods_of(app) if isinstance(mod, SelectiveEncryptionMod)]
    if not mods:
        raise ConfigurationError(
            "expected an app with the mod that encrypts, got one without, which would send its "
            "models in plaintext; write app = ClientApp(mods=[SelectiveEncryptionMod()])"
        )
    if len(mods) > 1:
        raise ConfigurationError(
            f"expected an app with one SelectiveEncryptionMod, got {len(mods)}, of which the inner "
            "ones would find messages opened already; leave one"
        )
    min_ratio = mods[0].min_ratio
    count = _checked(examples)
    handlers: dict[str, Handler] = {
        KEYS_ACTION: lambda message, context, client: answer_keys(
            message.content, client, count(context)
        ),
        SENSITIVITY_ACTION: lambda message, context, client: answer_map(
            message, context, client, sensitivity, count
        ),
        MASK_ACTION: lambda message, _, client: answer_mask(message.content, client),
        REKEY_ACTION: lambda message, _, client: answer_rekey(message.content, client),
        KEY_SUM_ACTION: lambda message, _, client: answer_key_sum(message.content, client),
    }
    for action, handler in handlers.items():
        app.query(action)(_guarded(handler, min_ratio))


def _checked(examples: ExamplesFn) -> ExamplesFn:
    """The app's function, whose answer is a whole number."""

    def checked(context: Context) -> int:
        number: object = examples(context)
        count = float(number) if isinstance(number, Real) else math.nan
        # The error travels to the server: what is no number could be the data themselves.
        got = repr(number) if isinstance(number, Real) else f"a {type(number).__name__}"
        if not (0 <= count <= 2**53 and count.is_integer()):
            raise ConfigurationError(
                "expected install()'s examples to return a number of training examples, got "
                f"{got}; return len() of this client's training data"
            )
        return int(count)

    return checked


def _called(function: ClientAppCallable, message: Message, context: Context) -> Message:
    """The app's answer, or the type of what it raised."""
    try:
        return function(message, context)
    except Exception as error:  # an error of fedsens too, since the app may have written it
        logger.exception("the app's %s function failed", message.metadata.message_type)
        return error_reply(message, error)


def _own_query(name: str) -> DowngradeError:
    return DowngradeError(
        "expected a message protected by fedsens, got a query of the app's own; if it carries no "
        f'model, let it pass: SelectiveEncryptionMod(pass_queries={{"{name}"}})'
    )


def _mods_of(app: ClientApp) -> list[object]:
    """The mods of an app, which Flower keeps to itself."""
    return list(getattr(app, "_mods", ()))


def _guarded(handler: Handler, min_ratio: float) -> Callable[[Message, Context], Message]:
    def handle(message: Message, context: Context) -> Message:
        try:
            content = handler(message, context, Client(context, min_ratio))
        except FedSensError as error:
            return refusal_reply(message, error)
        except Exception as error:
            logger.exception("%s failed", message.metadata.message_type)
            return error_reply(message, error)
        return Message(content, reply_to=message)

    return handle


def refusal_reply(message: Message, error: FedSensError) -> Message:
    """A named error and nothing else; its code says whether it is the model itself."""
    name, text = type(error).__name__, str(error)
    logger.error("refused %s: %s: %s", message.metadata.message_type, name, error.with_notes)
    if isinstance(error, OF_FILES):
        text = "expected a file of this client's that can be read and trusted, got another or none"
    if text != error.with_notes:
        text += "; the client's own log has the details"
    codes: dict[type[FedSensError], int] = {
        ModelError: MODEL_REFUSED,
        ContributorsError: LIST_REFUSED,
    }
    code = codes.get(type(error), REFUSED)
    return Message(Error(code, f"{name}: {text}"), reply_to=message)


def error_reply(message: Message, error: Exception) -> Message:
    """The type of an unexpected exception, whose text could quote anything and stays here."""
    reason = f"{type(error).__name__} in the app; the client's own log has the details"
    return Message(Error(RAISED, reason), reply_to=message)
