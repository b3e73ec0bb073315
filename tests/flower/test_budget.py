"""fedsens.max-mb: the largest ratio within a budget of bytes."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedsens import FedSensConfig
from fedsens.errors import ConfigurationError, StrategyError
from fedsens.flower import LocalGrid, SelectiveEncryption
from fedsens.mask import mask_count
from fedsens.protocol import ratio_within

from .federation import Run, is_reply, is_request, make_app

SIZE = 60_000


def answer(message, context):
    metrics = MetricRecord({"num-examples": 10})
    content = RecordDict({"metrics": metrics})
    if message.metadata.message_type == "train":
        content["arrays"] = message.content["arrays"]
    return Message(content, reply_to=message)


@pytest.mark.parametrize(
    ("dtype", "width", "preset", "megabytes"),
    [
        ("float32", 4.0, "exact", 0.6),  # ciphertexts larger than what they replace
        ("float64", 8.0, "exact", 0.93),  # smaller
        ("float16", 2.0, "precise", 0.36),
        ("mixed", 6.0, "precise", 0.66),
    ],
)
def test_a_client_sends_and_gets_about_the_budget(dtype, width, preset, megabytes):
    sizes = {"train": [], "key": [], "model": []}

    def look(message):
        for kind, wanted in (
            ("train", is_reply(message)),
            ("key", is_reply(message, "query.fedsens_key_sum")),
            ("model", is_request(message)),
        ):
            if wanted:
                records = message.content.array_records.values()
                size = sum(len(array.data) for record in records for array in record.values())
                sizes[kind].append(size)

    weights = np.random.default_rng(0).normal(0, 0.05, SIZE)
    types = ("float32", "float64") if dtype == "mixed" else (dtype, dtype)
    halves = zip("ab", np.split(weights, 2), types, strict=True)
    steps = np.arange(2000)
    run = Run(
        grid=LocalGrid(make_app(answer, answer), 2, tap=look),
        initial=ArrayRecord({
            "steps": Array(steps),
            **{name: Array(half.astype(kind)) for name, half, kind in halves},
        }),
        rounds=3,
        policy="random",
        max_mb=megabytes,
        ratio=0.9,
        preset=preset,
    )
    mask, codec = run.strategy.model.mask, run.strategy.config.parameters
    ratio = ratio_within(codec, SIZE, megabytes, width=width, buffers=steps.nbytes)
    assert mask.k == mask_count(ratio, SIZE)
    assert 0 < mask.ratio <= 1
    spent = sum(each[-1] for each in sizes.values())
    assert spent <= 1e6 * megabytes
    if width < codec.bytes_per_parameter:  # else one more block costs nothing
        block = 2 * (codec.bytes_per_parameter - width) * codec.degree
        assert 1e6 * megabytes - block - 10_000 < spent


def test_a_budget_that_encrypts_nothing_stops_the_run():
    with pytest.raises(ConfigurationError, match="room for one ciphertext"):
        Run(grid=LocalGrid(make_app(), 2), max_mb=0.01)


def test_a_budget_is_a_demand_for_encryption():
    class Median(FedAvg):
        def aggregate_train(self, server_round, replies):
            """Not a mean."""

    config = FedSensConfig(max_mb=1, ratio=0)
    with pytest.raises(StrategyError):
        SelectiveEncryption(Median(), config)
    with pytest.raises(ConfigurationError, match="max-mb has no say under policy 'all'"):
        FedSensConfig(max_mb=1, policy="all")
    assert FedSensConfig(**{"max-mb": 0.0}).max_mb is None  # a run config has no null
