"""Which strategies may be wrapped, and what the wrapper cannot offer."""

import pytest
from flwr.app import MetricRecord
from flwr.serverapp.strategy import (
    Bulyan,
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
)

from fedsens import FedSensConfig
from fedsens.errors import ProtocolError, StrategyError
from fedsens.flower import SelectiveEncryption

from .federation import Run, initial_arrays, run_plain

REFUSED = {
    "FedMedian": FedMedian,
    "FedAdam": FedAdam,
    "FedAdagrad": FedAdagrad,
    "FedYogi": FedYogi,
    "Krum": lambda: Krum(num_malicious_nodes=0),
    "MultiKrum": MultiKrum,
    "Bulyan": Bulyan,
    "FedTrimmedAvg": FedTrimmedAvg,
    "FedAvgM": FedAvgM,
    "QFedAvg": lambda: QFedAvg(client_learning_rate=0.1),
    "DifferentialPrivacyServerSideFixedClipping": lambda: (
        DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.1, 1.0, 3)
    ),
    "DifferentialPrivacyClientSideFixedClipping": lambda: (
        DifferentialPrivacyClientSideFixedClipping(FedAvg(), 0.1, 1.0, 3)
    ),
    "DifferentialPrivacyClientSideAdaptiveClipping": lambda: (
        DifferentialPrivacyClientSideAdaptiveClipping(FedAvg(), 0.1, 3)
    ),
}
RUNS = ["FedMedian", "FedAdam", "FedYogi", "MultiKrum", "FedTrimmedAvg", "FedAvgM"]


@pytest.mark.parametrize("name", REFUSED)
def test_a_strategy_that_needs_the_values_is_refused_by_name(name):
    for options in ({"ratio": 0.1}, {"ratio": 0, "policy": "all"}):
        with pytest.raises(StrategyError, match=f"got {name}: .*[Uu]se FedAvg or FedProx"):
            SelectiveEncryption(REFUSED[name](), FedSensConfig(**options))


@pytest.mark.parametrize("name", REFUSED)
def test_every_strategy_is_accepted_without_encryption(name):
    for options in ({"ratio": 0}, {"ratio": 0.5, "policy": "none"}):
        assert SelectiveEncryption(REFUSED[name](), FedSensConfig(**options)).inner


@pytest.mark.parametrize("name", RUNS)
def test_without_encryption_a_strategy_works_as_alone(name):
    expected = run_plain(REFUSED[name](), rounds=2)
    run = Run(inner=REFUSED[name](), rounds=2, ratio=0)
    assert run.result.arrays.object_id == expected.arrays.object_id


class Renamed(FedAvg):
    """Samples in its own way, averages as FedAvg does."""

    def configure_train(self, server_round, arrays, config, grid):
        config["own"] = True
        return super().configure_train(server_round, arrays, config, grid)


class Overridden(FedAvg):
    def aggregate_train(self, server_round, replies):
        return super().aggregate_train(server_round, replies)


@pytest.mark.parametrize("inner", [FedAvg, FedProx, Renamed])
def test_a_weighted_mean_is_accepted(inner):
    assert Run(inner=inner(), rounds=1, ratio=0.5).strategy.model.mask.k == 57


def test_an_own_aggregation_needs_the_callers_word():
    config = FedSensConfig(ratio=0.5)
    with pytest.raises(StrategyError, match="weighted_mean=True"):
        SelectiveEncryption(Overridden(), config)
    assert SelectiveEncryption(Overridden(), config, weighted_mean=True).inner


def evaluate_fn(server_round, arrays):
    return MetricRecord({"tensors": len(arrays)})


def test_the_server_cannot_evaluate_what_it_does_not_know():
    strategy = SelectiveEncryption(FedAvg(), FedSensConfig(ratio=0.5))
    with pytest.raises(StrategyError, match="evaluate on the clients"):
        strategy.start(None, initial_arrays(), evaluate_fn=evaluate_fn)


def test_without_encryption_the_server_may_evaluate():
    run = Run(rounds=1, ratio=0)
    strategy = SelectiveEncryption(FedAvg(), FedSensConfig(ratio=0))
    result = strategy.start(run.grid, initial_arrays(), 1, evaluate_fn=evaluate_fn)
    assert dict(result.evaluate_metrics_serverapp[1]) == {"tensors": 9}


def test_there_is_no_model_before_the_first_round():
    with pytest.raises(ProtocolError, match="expected a run that has begun"):
        _ = SelectiveEncryption(FedAvg()).model
