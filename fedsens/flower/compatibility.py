"""Which strategies can aggregate a model of which the server sees a part only."""

from __future__ import annotations

from flwr.serverapp.strategy import FedAvg, Strategy

from fedsens.errors import StrategyError


def check_strategy(strategy: Strategy, encrypts: bool, weighted_mean: bool) -> None:
    """Refuse a strategy whose aggregation is not a mean weighted by examples.

    The server can add ciphertexts but not compare, clip or scale them adaptively. A strategy
    qualifies if it aggregates as FedAvg does (FedAvg, FedProx and subclasses that leave
    ``aggregate_train`` alone), or if the caller vouches for it.

    Args:
        strategy: the inner strategy.
        encrypts: whether anything is encrypted; without that every strategy is allowed.
        weighted_mean: the caller's word that the strategy's aggregation is a mean of the replies
            weighted by their examples.

    Raises:
        StrategyError: the strategy cannot be used.
    """
    aggregate = getattr(type(strategy), "aggregate_train", None)
    if not encrypts or weighted_mean or aggregate is FedAvg.aggregate_train:
        return
    raise StrategyError(
        f"expected a strategy that averages weighted by examples (FedAvg, FedProx), got "
        f"{type(strategy).__name__}: medians, trimming, Krum, clipping and adaptive server "
        "optimisers need the values that are encrypted. Use FedAvg or FedProx, set fedsens.ratio "
        "to 0, or pass weighted_mean=True if yours does average so"
    )
