"""The strategy that SelectiveEncryption wraps: what it may be, what it sees, when it averages."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    Bulyan,
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedXgbBagging,
    FedXgbCyclic,
    Krum,
    MultiKrum,
    QFedAvg,
    Strategy,
)
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords, aggregate_metricrecords
from numpy.typing import NDArray

from fedsens._files import Arrays
from fedsens.crypto import Opens
from fedsens.errors import StrategyError
from fedsens.flower._groups import COMPARE, least_groups
from fedsens.flower._records import model_key, to_arrays, to_record
from fedsens.flower._updates import averageable
from fedsens.layout import ParameterLayout
from fedsens.mask import EncryptionMask, as_layout_types, combine, partition, with_nan
from fedsens.protocol import ProtectedModel

# These look at each client's model, of which nobody but the client knows more than the sum.
NEED_SINGLE_UPDATES = (
    Bulyan,
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedMedian,
    FedTrimmedAvg,
    Krum,
    MultiKrum,
    QFedAvg,
)
TREES = FedXgbBagging, FedXgbCyclic
FLOWERS_OWN = (FedAvg.configure_train, FedProx.configure_train)


class InnerStrategy:
    """A user's strategy, given whole tensors with NaN at what is hidden where it looks at them.

    FedAvg's own averaging and sampling do not look at shapes, so that they are spared the work of
    making whole tensors.

    Attributes:
        strategy: the strategy.
        record: name of the ArrayRecord that holds the model.
        weighted_by: name of the metric that counts examples.
    """

    def __init__(
        self,
        strategy: Strategy,
        encrypts: bool,
        weighted_mean: bool,
        opens: Opens = "clients",
        groups: int = 1,
    ) -> None:
        """Check a strategy; see :func:`check_strategy`."""
        check_strategy(strategy, encrypts, weighted_mean, opens, groups)
        self.strategy = strategy
        self.record = str(getattr(strategy, "arrayrecord_key", "arrays"))
        self.weighted_by = str(getattr(strategy, "weighted_by_key", "num-examples"))
        own = type(strategy)
        self._averages_itself = own.aggregate_train is not FedAvg.aggregate_train
        self._asks_itself = (
            own.configure_train not in FLOWERS_OWN
            or own.configure_evaluate is not FedAvg.configure_evaluate
        )

    def shown(self, arrays: ArrayRecord, model: ProtectedModel) -> ArrayRecord:
        """The global model as the strategy gets it: whole if it configures rounds itself."""
        # What Flower holds on to is emptied once messages hold the model.
        if self._asks_itself and (model.mask.k or not arrays):
            return to_record(model.visible())
        return arrays

    def keep_its_model(
        self, messages: Iterable[Message], model: ProtectedModel, opens: Opens
    ) -> bool:
        """Whether the strategy's messages hold the model that clients shall get.

        A strategy that configures rounds itself may send another model than the last mean, a mean
        of several rounds say. Where the server opens, that is what travels.

        Raises:
            StrategyError: it sends another, but clients open, so that the server cannot know it.
        """
        if not self._asks_itself:
            return False
        for content in {id(m.content): m.content for m in messages}.values():
            key = model_key(content)
            arrays = to_arrays(content.array_records[key])
            if opens == "server":
                content[key] = to_record(as_layout_types(arrays, model.layout))
            elif not _same(arrays, model.visible()):
                raise StrategyError(
                    "expected a strategy that sends the mean of the last round, of which the "
                    f"server knows a part only, got {type(self.strategy).__name__} with a model "
                    "of its own; send the arrays that configure_train was given, or set "
                    "fedsens.opens to server"
                )
        return opens == "server"

    def told(self, config: ConfigRecord) -> RecordDict:
        """What clients are told to make a map: a content like that of training, without a model."""
        key = str(getattr(self.strategy, "configrecord_key", "config"))
        return RecordDict({self.record: ArrayRecord(), key: ConfigRecord(dict(config))})

    def even(self, replies: list[Message], kind: str) -> list[Message]:
        """Make the strategy able to average metrics of replies; its own function gets all."""
        function = getattr(self.strategy, f"{kind}_metrics_aggr_fn", None)
        return averageable(replies) if function is aggregate_metricrecords else replies

    def fill_in(
        self,
        replies: list[Message],
        mean: NDArray[np.floating],
        layout: ParameterLayout,
        mask: EncryptionMask,
    ) -> None:
        """Give every reply whole tensors, with the mean in the place of what it encrypted.

        Any mean of them, with whatever weights, is then the mean of the encrypted coordinates.
        """
        shared = None
        for reply in replies:
            if shared is None or mask.k < mask.size:
                plain = to_arrays(reply.content.array_records[self.record])
                shared = to_record(as_layout_types(combine(plain, mean, layout, mask), layout))
            # Flower empties the records that it averages.
            reply.content[self.record] = ArrayRecord(dict(shared))

    def joined(self, replies: list[Message]) -> Message:
        """A group's first reply, with the means of models and metrics and the sum of examples."""
        contents = [reply.content for reply in averageable(replies)]
        (key,) = contents[0].metric_records
        examples = [content.metric_records[key][self.weighted_by] for content in contents]
        metrics = aggregate_metricrecords(contents, self.weighted_by)
        metrics[self.weighted_by] = sum(examples)  # type: ignore[arg-type] # checked as numbers
        arrays = aggregate_arrayrecords(contents, self.weighted_by)
        replies[0].content = RecordDict({self.record: arrays, key: metrics})
        return replies[0]

    def average(
        self,
        server_round: int,
        replies: list[Message],
        layout: ParameterLayout,
        mask: EncryptionMask,
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The strategy's mean of the plaintext remainders, as it travels, and of the metrics."""
        if not self._averages_itself:
            return self.strategy.aggregate_train(server_round, replies)
        key = self.record
        for reply in replies:
            visible = with_nan(to_arrays(reply.content.array_records[key]), layout, mask)
            reply.content[key] = to_record(visible)
        arrays, metrics = self.strategy.aggregate_train(server_round, replies)
        if arrays is not None and replies:
            arrays = to_record(partition(to_arrays(arrays), mask, layout)[0])
        return arrays, metrics


def _same(arrays: Arrays, others: Arrays) -> bool:
    """Whether two models are equal, NaN included."""
    return set(arrays) == set(others) and all(
        np.array_equal(arrays[name], array, equal_nan=array.dtype.kind == "f")
        for name, array in others.items()
    )


def check_strategy(
    strategy: Strategy,
    encrypts: bool,
    weighted_mean: bool,
    opens: Opens = "clients",
    groups: int = 1,
) -> None:
    """Refuse a strategy whose aggregation is not a mean weighted by examples.

    The server can add ciphertexts but not compare, clip or scale them adaptively. A strategy
    qualifies if it aggregates as FedAvg does (FedAvg, FedProx and subclasses that leave
    ``aggregate_train`` alone), or if the caller vouches for it. Where the server opens the sums,
    every function of the mean will do; with several groups also one that compares answers, and no
    other.

    Raises:
        StrategyError: the strategy cannot be used.
    """
    name = type(strategy).__name__
    if not isinstance(strategy, Strategy):
        raise StrategyError(
            f"expected a strategy of flwr.serverapp.strategy, got {name} of "
            f"{type(strategy).__module__}; classes of flwr.server.strategy are of Flower's old API"
        )
    if type(strategy).start is not Strategy.start:
        raise StrategyError(
            f"expected a strategy that leaves start() to Flower, got {name} with its own, which "
            "would never be called, because fedsens runs the rounds; move what it does into "
            "aggregate_train, aggregate_evaluate or on_report, or behind the call of start"
        )
    if encrypts and isinstance(strategy, TREES):
        raise StrategyError(
            f"expected a strategy whose models have a mean, got {name}, whose models are trees, as "
            "bytes that nobody can add up; set fedsens.ratio to 0"
        )
    aggregate = type(strategy).aggregate_train
    if encrypts and opens == "server":
        if groups > 1:
            _check_comparing(strategy, groups)
        else:
            _check_function_of_the_mean(strategy)
        return
    if not encrypts or weighted_mean or aggregate is FedAvg.aggregate_train:
        return
    flowers = type(strategy).__module__.startswith("flwr.")
    why = (
        "it needs values that are encrypted (medians, trimming, Krum, clipping and adaptive "
        "server optimisers do)"
        if flowers
        else "fedsens cannot know what its aggregate_train does with models of which the server "
        "sees a part"
    )
    if isinstance(strategy, COMPARE):
        why += f"; {_on_groups(strategy)}"
    remedy = "Use"
    if not isinstance(strategy, NEED_SINGLE_UPDATES):
        remedy = (
            "Set fedsens.opens to server, which may run any function of the mean and which each "
            "client's owner must allow (fedsens-opens=server), use"
        )
    raise StrategyError(
        f"expected a strategy that averages weighted by examples (FedAvg, FedProx), got {name}: "
        f"{why}. {remedy} FedAvg or FedProx, set fedsens.ratio to 0, or pass weighted_mean=True if "
        "its mean is that of FedAvg; it then gets whole tensors with NaN at what is hidden"
    )


def _check_function_of_the_mean(strategy: Strategy) -> None:
    """Refuse what the server cannot compute from the mean alone."""
    if not isinstance(strategy, NEED_SINGLE_UPDATES):
        return
    name = type(strategy).__name__
    why = (
        "it weights each client's update by that client's loss"
        if isinstance(strategy, QFedAvg)
        else "it looks at single clients' models (medians, trimming, Krum and clipping do)"
    )
    if isinstance(strategy, COMPARE):
        why += f" ({_on_groups(strategy)})"
    raise StrategyError(
        f"expected a strategy that is a function of the mean weighted by examples, got {name}: "
        f"{why}, and the server opens nothing but the mean. Use FedAvg, FedProx, FedAvgM, FedAdam, "
        "FedYogi or FedAdagrad, or set fedsens.ratio to 0; for privacy clip and add noise in a mod "
        "of the clients"
    )


def _check_comparing(strategy: Strategy, groups: int) -> None:
    """Refuse, for groups of clients, what does not compare their means or needs more of them."""
    name, least = type(strategy).__name__, least_groups(strategy)
    if not isinstance(strategy, COMPARE):
        raise StrategyError(
            "expected a strategy that compares answers for fedsens.groups (FedMedian, "
            f"FedTrimmedAvg, Krum, MultiKrum, Bulyan), got {name}; leave fedsens.groups out, since "
            "the server would learn the mean of each group for nothing"
        )
    if groups < least:
        raise StrategyError(
            f"expected at least {least} groups for {name} as it is set, got {groups}; raise "
            "fedsens.groups, or have it tolerate fewer"
        )


def _on_groups(strategy: Strategy) -> str:
    """What makes a strategy that compares answers possible."""
    return (
        "it can compare the means of groups of clients: set fedsens.opens to server and "
        f"fedsens.groups to {least_groups(strategy)} or more"
    )
