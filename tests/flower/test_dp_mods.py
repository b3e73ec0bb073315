"""Flower's differential privacy beside fedsens: the order that works, and others by name."""

import random

import numpy as np
import pytest
from flwr.app import ConfigRecord
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod, adaptiveclipping_mod, fixedclipping_mod
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
)

from fedsens import FedSensConfig
from fedsens.errors import PhaseError, StrategyError
from fedsens.flower import LocalGrid, SelectiveEncryption, SelectiveEncryptionMod, install
from fedsens.keys import open_model

from .federation import (
    Recorder,
    arrays_of,
    data_of,
    evaluate,
    initial_arrays,
    largest_difference,
    rounding,
    sensitivity,
    shared_key,
)

NORM = 0.05
MODS = {
    "LocalDpMod": LocalDpMod(NORM, sensitivity=0.0, epsilon=1.0, delta=0.5),
    "fixedclipping_mod": fixedclipping_mod,
    "adaptiveclipping_mod": adaptiveclipping_mod,
}
FORCE = "*running_*"


def app_with(train, outside=(), around_training=()):
    app = ClientApp(mods=list(outside))
    app.train(mods=list(around_training))(train)
    app.evaluate()(evaluate)
    install(app, sensitivity, examples=lambda context: len(data_of(context)[1]))
    return app


def start(app, rounds=1, **options):
    strategy = SelectiveEncryption(FedAvg(), FedSensConfig(ratio=0.5, force=FORCE, **options))
    grid = LocalGrid(app, 3)
    random.seed(0)
    config = ConfigRecord({"clipping_norm": NORM})  # Flower's key; in strategy.start's train_config
    strategy.start(grid, initial_arrays(), rounds, train_config=config)
    return strategy, grid


def norm_of(update):
    return float(np.sqrt(sum((np.asarray(each, float) ** 2).sum() for each in update)))


@pytest.mark.parametrize("remainder", ["plain", "withheld"])
@pytest.mark.parametrize("mod", MODS.values(), ids=MODS)
def test_around_training_it_clips_whole_models_before_they_are_split(mod, remainder):
    recorder, clipped = Recorder(), {}

    def after(message, context, call_next):
        reply = call_next(message, context)
        examples = reply.content["metrics"]["num-examples"]
        clipped[context.node_id] = examples, arrays_of(reply.content["arrays"])
        return reply

    app = app_with(recorder, [SelectiveEncryptionMod()], [after, mod])
    strategy, grid = start(app, remainder=remainder)
    assert [each.clients for each in strategy.reports if each.phase == "train"] == [3]
    received = recorder.received[1][0]
    floats = [name for name, array in received.items() if array.dtype.kind == "f"]
    for node, (_, trained) in recorder.trained[1].items():
        whole = [trained[name] - received[name] for name in floats]
        kept = [clipped[node][1][name] - received[name] for name in floats]
        assert norm_of(whole) > NORM
        assert norm_of(kept) <= NORM * 1.001
    recorder.trained[1] = clipped
    mean = recorder.mean(1)
    opened = open_model(strategy.model, shared_key(grid), 1)
    bound = strategy.config.parameters.error_bound(3) + rounding(opened)
    if remainder == "withheld":
        masked = strategy.model.mask.selected
        flat = strategy.model.layout.flatten
        mean["1.num_batches_tracked"] = opened["1.num_batches_tracked"]
        mean = {name: np.asarray(a, opened[name].dtype) for name, a in mean.items()}
        assert np.abs(flat(opened) - flat(mean))[masked].max() <= bound
    else:
        assert largest_difference(opened, mean) <= bound


@pytest.mark.parametrize("name", MODS)
def test_outside_fedsens_it_fails_by_name(name, caplog):
    """It would clip ciphertexts; Flower's mods refuse messages with records of others."""
    app = app_with(Recorder(), [MODS[name], SelectiveEncryptionMod()])
    with pytest.raises(PhaseError):
        start(app)
    assert f"{name} expects exactly one ArrayRecord" in caplog.text


class ButForTraining(SelectiveEncryptionMod):
    """Leaves training to another instance, which stands farther in."""

    def __call__(self, message, context, call_next):
        if message.metadata.message_type == "train":
            return call_next(message, context)
        return super().__call__(message, context, call_next)


@pytest.mark.parametrize("name", MODS)
def test_outside_fedsens_around_training_alone_it_fails_by_name(name, caplog):
    recorder = Recorder()
    app = app_with(recorder, [ButForTraining()], [MODS[name], SelectiveEncryptionMod()])
    with pytest.raises(PhaseError, match=rf"node 1000: {name} expects exactly one ArrayRecord"):
        start(app)
    assert not recorder.trained
    assert f"{name} expects exactly one ArrayRecord, but found 2" in caplog.text


@pytest.mark.parametrize("name", MODS)
def test_inside_fedsens_but_around_queries_too_it_fails_by_name(name, caplog):
    """In ClientApp's own list it sees fedsens's queries, which hold no model."""
    app = app_with(Recorder(), [SelectiveEncryptionMod(), MODS[name]])
    with pytest.raises(PhaseError):
        start(app)
    assert f"{name} expects exactly one ArrayRecord, but found 0" in caplog.text


AROUND = {
    "client-side fixed": lambda inner: DifferentialPrivacyClientSideFixedClipping(inner, 1, 1, 3),
    "client-side adaptive": lambda inner: DifferentialPrivacyClientSideAdaptiveClipping(
        inner, 0.1, 3
    ),
    "server-side fixed": lambda inner: DifferentialPrivacyServerSideFixedClipping(inner, 1, 1, 3),
    "server-side adaptive": lambda inner: DifferentialPrivacyServerSideAdaptiveClipping(
        inner, 0.1, 3
    ),
}


@pytest.mark.parametrize("wrap", AROUND.values(), ids=AROUND)
def test_a_strategy_around_fedsens_is_an_error_by_name(wrap):
    """Inside it is refused already: see test_compatibility."""
    strategy = wrap(SelectiveEncryption(FedAvg(), FedSensConfig(ratio=0.5)))
    grid = LocalGrid(app_with(Recorder(), [SelectiveEncryptionMod()]), 3)
    with pytest.raises(StrategyError, match="SelectiveEncryption to be the outermost strategy"):
        strategy.start(grid, initial_arrays(), 1)
