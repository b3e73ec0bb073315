"""Models of other types and sizes, masks of none and of all."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedsens import FedSensConfig
from fedsens.errors import ConfigurationError, PhaseError, StrategyError
from fedsens.flower import LocalGrid, SelectiveEncryption
from fedsens.keys import open_model

from .federation import (
    Recorder,
    Run,
    arrays_of,
    evaluate,
    initial_arrays,
    largest_difference,
    make_app,
    rounding,
)

EXAMPLES = {1000: 20, 1001: 30, 1002: 40}


def record_of(arrays):
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def walk(message, context):
    """Training without torch: a step of each float tensor that differs by client."""
    arrays = arrays_of(message.content["arrays"])
    rng = np.random.default_rng(context.node_id)
    for name, array in arrays.items():
        if array.dtype.kind == "f":
            arrays[name] = (array + rng.normal(scale=0.01, size=array.shape)).astype(array.dtype)
    return answer(message, context, arrays=record_of(arrays))


def answer(message, context, **records):
    metrics = MetricRecord({"num-examples": EXAMPLES[context.node_id]})
    return Message(RecordDict({**records, "metrics": metrics}), reply_to=message)


def federate(arrays, recorder, **options):
    app = make_app(recorder, evaluate=answer)
    return Run(grid=LocalGrid(app, 3), initial=record_of(arrays), policy="random", **options)


def arrays(*kinds):
    rng = np.random.default_rng(0)
    return {kind: rng.normal(size=(3, 5)).astype(kind) for kind in kinds}


@pytest.mark.parametrize("ratio", [0.5, 1.0])
@pytest.mark.parametrize("kinds", [["float64"], ["float32", "float64"], ["float16"]])
def test_every_float_type_is_averaged_and_keeps_its_type(kinds, ratio):
    recorder = Recorder(walk)
    run = federate(arrays(*kinds), recorder, rounds=3, ratio=ratio)
    steps = {"float16": 2e-3, "float32": 0, "float64": 0}  # float16 has a spacing of 0.001 at 1
    bound = run.strategy.config.parameters.error_bound(3) + rounding(run.models[1])
    for server_round, model in run.models.items():
        mean = recorder.mean(server_round)
        for kind in kinds:
            gap = largest_difference({kind: model[kind]}, {kind: mean[kind]})
            assert gap <= bound + steps[kind]
            assert model[kind].dtype == kind


def test_float64_is_not_squeezed_through_float32():
    recorder = Recorder(walk)
    run = federate(arrays("float64"), recorder, rounds=1, ratio=1.0, preset="exact", value_range=2)
    gap = largest_difference(run.models[1], recorder.mean(1))
    assert gap <= run.strategy.config.parameters.error_bound(3) + 1e-15
    assert gap < 1e-9


def test_integer_buffers_stay_in_plaintext_and_keep_their_type(recorder):
    run = Run(app=make_app(recorder), rounds=2, ratio=1.0)
    model = run.strategy.model
    assert model.plain["1.num_batches_tracked"].shape == ()
    counts = run.models[2]["1.num_batches_tracked"]
    assert counts.dtype == np.int64
    assert counts == 6  # of 3 batches in each round; FedAvg's own mean is cut to 5
    assert counts == round(float(recorder.mean(2)["1.num_batches_tracked"]))


def test_running_statistics_can_be_encrypted(recorder):
    run = Run(app=make_app(recorder), rounds=2, policy="random", ratio=0.5, force="1")
    assert run.strategy.model.plain["1.running_var"].size == 0
    bound = run.strategy.config.parameters.error_bound(3) + rounding(run.models[1])
    assert largest_difference(run.models[2], recorder.mean(2)) <= bound


def test_a_tensor_without_values_and_a_scalar_travel_along():
    recorder = Recorder(walk)
    state = {"none": np.zeros((0, 4), np.float32), "one": np.float32(0.5), **arrays("float32")}
    run = federate(state, recorder, rounds=2, ratio=1.0)
    assert run.models[2]["none"].shape == (0, 4)
    assert run.models[2]["one"].shape == ()
    assert abs(run.models[2]["one"] - recorder.mean(2)["one"]) < 1e-5


def test_more_values_than_a_block_hold(recorder):
    recorder = Recorder(walk)
    big = {"w": np.random.default_rng(0).normal(size=10_000).astype(np.float32)}
    run = federate(big, recorder, rounds=1, ratio=0.9)
    bound = run.strategy.config.parameters.error_bound(3) + rounding(run.models[1])
    assert largest_difference(run.models[1], recorder.mean(1)) <= bound


@pytest.mark.parametrize("ratio", [1e-6, 0.008])
def test_a_ratio_that_encrypts_nothing_is_refused_rather_than_ignored(ratio):
    with pytest.raises(ConfigurationError, match=r"at least one of 115 parameters.*set it to 0"):
        Run(rounds=1, ratio=ratio)


def test_the_smallest_ratio_encrypts_one_parameter(recorder):
    run = Run(app=make_app(recorder), rounds=2, ratio=0.009)
    assert run.strategy.model.mask.k == 1
    bound = run.strategy.config.parameters.error_bound(3) + rounding(run.models[1])
    assert largest_difference(run.models[2], recorder.mean(2)) <= bound


@pytest.mark.parametrize(
    "state",
    [{}, {"steps": np.array(3)}, {"none": np.zeros((0,), np.float32)}],
    ids=["no tensors", "integers only", "no values"],
)
def test_a_model_without_parameters_cannot_be_encrypted(state):
    with pytest.raises(ConfigurationError, match="at least one of 0 parameters"):
        federate(state, Recorder(walk), rounds=1, ratio=1.0)


@pytest.mark.parametrize("state", [{"steps": np.array(3)}, {"none": np.zeros((0,), np.float32)}])
def test_a_model_without_parameters_is_the_inner_strategys_matter(state):
    run = federate(state, Recorder(walk), rounds=1, ratio=0)
    assert sorted(run.models[1]) == sorted(state)


def test_initial_values_beyond_the_range_are_refused_by_name():
    recorder = Recorder(walk)
    big = {"w": np.full(8192, 50.0, np.float32)}
    with pytest.raises(PhaseError, match=r"node 1000: ValueRangeError.*got w beyond that range"):
        federate(big, recorder, rounds=1, ratio=1.0)
    recorder = Recorder(walk)
    grid = LocalGrid(make_app(recorder, evaluate=answer), 3, run_id=2)
    run = Run(grid=grid, initial=record_of(big), rounds=1, policy="all", value_range=64.0)
    assert run.reports("train")[0].clients == 3


def test_runs_that_only_evaluate_are_plain_or_refused(recorder):
    run = Run(inner=FedAvg(fraction_train=0.0), app=make_app(recorder), rounds=1, ratio=0)
    assert run.reports("evaluate")[0].clients == 3
    opened = open_model(run.strategy.model, None, 1)
    assert largest_difference(opened, arrays_of(initial_arrays())) == 0
    with pytest.raises(StrategyError, match="expected a strategy that trains"):
        Run(inner=FedAvg(fraction_train=0.0), app=make_app(recorder), rounds=1, ratio=0.5)


def test_ratio_0_lets_through_what_only_the_inner_strategy_understands():
    def count(message, context):
        arrays = {"counts": Array(np.arange(3)), "sum": Array(np.float32([1, 2]))}
        metrics = MetricRecord({"rows": 2})
        content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})
        return Message(content, reply_to=message)

    def evaluate(message, context):
        return Message(RecordDict({"metrics": MetricRecord({"rows": 1})}), reply_to=message)

    initial = ArrayRecord({"counts": Array(np.zeros(3, int)), "sum": Array(np.zeros(2, "f4"))})
    app = make_app(train=count, evaluate=evaluate)
    grid = LocalGrid(app, 2)
    strategy = SelectiveEncryption(FedAvg(weighted_by_key="rows"), FedSensConfig(ratio=0))
    result = strategy.start(grid, initial, 3)
    assert [report.lost for report in strategy.reports] == [0] * 6
    assert result.arrays["counts"].numpy().tolist() == [0, 1, 2]


def test_an_evaluation_that_answers_with_a_model_is_refused_by_its_client(recorder, caplog):
    """An upload is an answer to training only; no second one leaves within a round."""

    def evaluate_and_answer(message, context):
        reply = evaluate(message, context)
        reply.content["model"] = ArrayRecord(message.content["arrays"].to_torch_state_dict())
        return reply

    run = Run(app=make_app(recorder, evaluate=evaluate_and_answer), rounds=2, ratio=0.5)
    assert [(r.clients, r.lost) for r in run.reports("evaluate")] == [(0, 3)] * 2
    assert "expected a model in answers to training only, got one in another answer" in caplog.text
    assert largest_difference(run.models[2], recorder.mean(2)) < 1e-5
