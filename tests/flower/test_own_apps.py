"""What other people's apps do: metrics, names, buffers, strategies and calls of their own."""

from __future__ import annotations

import logging
import random

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedMedian
from torch import nn

from fedsens import FederationKey, FedSensConfig, sensitivity_map
from fedsens.data import load_dataset
from fedsens.errors import ConfigurationError, LayoutError, PhaseError, StrategyError
from fedsens.flower import LocalGrid, SelectiveEncryption, SelectiveEncryptionMod, install
from fedsens.keys import open_model
from fedsens.sensitivity import load_map

from .federation import config_of, initial_arrays, key_of, load, shared_key, train


def answer(message, **records):
    return Message(RecordDict(records), reply_to=message)


def count_of(context):
    return 20 + 10 * (context.node_id - 1000)


def echo(message, context):
    """A client that trains nothing."""
    metrics = MetricRecord({"num-examples": count_of(context)})
    return answer(message, arrays=message.content["arrays"], metrics=metrics)


def score(message, context):
    return answer(message, metrics=MetricRecord({"num-examples": 10, "loss": 1.0}))


def arrays(**state):
    return ArrayRecord({name: Array(np.asarray(value)) for name, value in state.items()})


def weights(**more):
    return arrays(w=np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 6), **more)


class Federation:
    """An app on a grid, and a strategy that is started on it."""

    def __init__(self, train=echo, evaluate=score, sensitivity=None, examples=count_of, clients=3):
        app = ClientApp(mods=[SelectiveEncryptionMod()])
        app.train()(train)
        app.evaluate()(evaluate)
        install(app, sensitivity, examples=examples)
        self.grid = LocalGrid(app, clients)

    def start(self, initial=None, rounds=2, *, inner=None, weighted_mean=False, begin=None, **own):
        options = {"ratio": 0.5, "policy": "random", **own}
        self.strategy = SelectiveEncryption(
            inner or FedAvg(), config_of(**options), weighted_mean=weighted_mean
        )
        random.seed(0)
        initial = weights() if initial is None else initial
        self.result = self.strategy.start(self.grid, initial, rounds, **(begin or {}))
        return self.result

    def clients(self, phase="train"):
        return [report.clients for report in self.strategy.reports if report.phase == phase]

    def opened(self):
        model = self.strategy.model
        return open_model(model, shared_key(self.grid) if model.aggregate else None, 1)


@pytest.mark.parametrize(
    "options",
    [
        {"ratio": 0.5},
        {"ratio": 1.0},
        {"ratio": 0.0},
        {"ratio": 1.0, "opens": "server"},
        {"ratio": 1.0, "dp_noise": 0.1, "dp_clip": 1.0},
        {"remainder": "noised"},
        {"remainder": "noised", "noise_clip": 1.0, "noise": "laplace"},
        {"remainder": "withheld", "refresh_every": 1},
    ],
    ids=str,
)
def test_opened_models_and_results_are_arrays_that_torch_takes(options, monkeypatch):
    """The documented recipe, with a counter and a temperature that have no axes."""
    monkeypatch.setenv("FEDSENS_OPENS", "server")
    federation = Federation()
    state = {"steps": np.int64(3), "temperature": np.float32(0.5), "flag": np.bool_(True)}
    result = federation.start(weights(**state), rounds=1, **options)
    opened = {name: torch.from_numpy(array) for name, array in federation.opened().items()}
    assert {name: tuple(tensor.shape) for name, tensor in opened.items()} == {
        "w": (4, 6),
        **dict.fromkeys(state, ()),
    }
    assert (round(opened["steps"].item()), bool(opened["flag"])) == (3, True)
    seen = {name: array.numpy() for name, array in result.arrays.items()}
    assert all(isinstance(array, np.ndarray) for array in seen.values())


# Rounds in which nobody's update counts.


def fail(message, context):
    raise ValueError("batch_size should be a positive integer")


def without_count(message, context):
    metrics = MetricRecord({"loss": 1.0})
    return answer(message, arrays=message.content["arrays"], metrics=metrics)


def of_nothing(message, context):
    metrics = MetricRecord({"num-examples": 0})
    return answer(message, arrays=message.content["arrays"], metrics=metrics)


def without_model(message, context):
    return answer(message, metrics=MetricRecord({"num-examples": 10}))


def far_out(message, context):
    metrics = MetricRecord({"num-examples": 10})
    return answer(message, arrays=arrays(w=np.full((4, 6), 1e6, np.float32)), metrics=metrics)


@pytest.mark.parametrize(
    ("train", "reason"),
    [
        (fail, "node 1000: ValueError in the app"),
        (without_count, "node 1000: .*'num-examples'"),
        (of_nothing, "node 1000: .*a positive, finite number"),
        (without_model, "node 1000: .*got none; return the trained model in an ArrayRecord"),
        (far_out, "node 1000: ValueRangeError.*raise fedsens.value-range"),
    ],
    ids=["exception", "no number of examples", "no examples", "no model", "values out of range"],
)
def test_a_first_round_without_any_update_ends_the_run_with_the_reasons(train, reason):
    with pytest.raises(PhaseError, match=f"within 1 rounds.*{reason}"):
        Federation(train).start()


def test_without_encryption_a_first_round_of_exceptions_ends_the_run_too():
    with pytest.raises(PhaseError, match=r"node 1000: ValueError in the app"):
        Federation(fail).start(ratio=0)


def test_later_rounds_may_be_empty_for_a_while():
    def tire(message, context):
        if message.content["config"]["server-round"] > 1:
            raise ValueError("no data today")
        return echo(message, context)

    with pytest.raises(PhaseError, match="within 3 rounds, got none up to round 4"):
        Federation(tire).start(rounds=9)
    federation = Federation(tire)
    federation.grid = LocalGrid(federation.grid._app, 3, run_id=2)
    federation.start(rounds=5, max_empty_rounds=9)
    assert federation.clients() == [3, 0, 0, 0, 0]


@pytest.mark.parametrize("rounds", [1, 5])
@pytest.mark.parametrize("opens", ["clients", "server"])
def test_a_sum_of_fewer_than_the_clients_demand_ends_with_what_they_said(
    monkeypatch, rounds, opens
):
    monkeypatch.setenv("FEDSENS_MIN_CONTRIBUTORS", "4")
    monkeypatch.setenv("FEDSENS_OPENS", opens)
    with pytest.raises(PhaseError, match=r"node 1000: .*at least 4 .*fedsens-min-contributors"):
        Federation().start(rounds=rounds, opens=opens)


def test_clients_that_refuse_later_are_quoted_where_rounds_are_empty():
    """They are no longer asked, so that their reasons are those of the round before."""

    class Leaving(LocalGrid):
        def answer(self, message):
            if message.metadata.message_type == "train":
                self.nodes[message.metadata.dst_node_id].node_config["fedsens-min-ratio"] = 0.9
            return super().answer(message)

    federation = Federation()
    federation.grid = Leaving(federation.grid._app, 3)
    with pytest.raises(PhaseError, match=r"node 1000: .*minimum ratio 0.9"):
        federation.start(rounds=5, max_empty_rounds=2)


@pytest.mark.parametrize(
    ("name", "rest"), [("key", ".*lower fedsens.key-min-clients"), ("map", ".*; mend these$")]
)
def test_a_phase_that_all_clients_refuse_ends_with_their_reasons(name, rest, monkeypatch):
    options = {"policy": "sensitivity"}
    if name == "key":
        monkeypatch.setenv("FEDSENS_MIN_RATO", "0.5")
        reason = "fedsens-min-rato: no such setting; do you mean fedsens-min-ratio"
    else:
        reason = "expected a sensitivity function"
    with pytest.raises(PhaseError, match=f"got 0: node 1000: .*{reason}{rest}"):
        Federation().start(**options)


def test_an_app_without_install_is_told_so():
    app = ClientApp(mods=[SelectiveEncryptionMod()])
    app.train()(echo)
    federation = Federation()
    federation.grid = LocalGrid(app, 3)
    with pytest.raises(PhaseError, match=r"node 1000: its app has no install\(app, ...\)"):
        federation.start()


def test_a_report_says_why_clients_are_lost():
    def tire(message, context):
        if context.node_id == 1001:
            raise ValueError("no data today")
        reply = echo(message, context)
        if context.node_id == 1002:
            reply.content["metrics"]["num-examples"] = 0
        return reply

    federation = Federation(tire, clients=4)
    federation.start(rounds=1)
    (report,) = [each for each in federation.strategy.reports if each.phase == "train"]
    assert (report.clients, report.lost) == (2, 2)
    assert report.reasons[1001].startswith("ValueError in the app")
    assert "'num-examples'" in report.reasons[1002]


def test_variables_of_the_prefix_that_are_no_misspelling_do_no_harm(monkeypatch, caplog):
    monkeypatch.setenv("FEDSENS_ANYTHING", "1")
    federation = Federation()
    federation.start()
    assert federation.clients() == [3, 3]
    assert "FEDSENS_ANYTHING is no setting of fedsens" in caplog.text


def test_a_key_phase_names_no_more_than_some_clients(monkeypatch):
    monkeypatch.setenv("FEDSENS_MIN_RATO", "0.5")
    with pytest.raises(PhaseError, match=r"\(and 9 more nodes\); mend these") as caught:
        Federation(clients=10).start()
    assert str(caught.value).count("node 10") == 1


# Metrics.


def lists(message, context, **more):
    length = 3 + context.node_id - 1000
    metrics = MetricRecord({"num-examples": 10, "losses": [1.0] * length, "loss": 2.0, **more})
    if message.metadata.message_type == "evaluate":
        return answer(message, metrics=metrics)
    return answer(message, arrays=message.content["arrays"], metrics=metrics)


def total(records, weighted_by):
    found = [metrics["losses"] for record in records for metrics in record.metric_records.values()]
    return MetricRecord({"total": float(sum(map(sum, found)))})


@pytest.mark.parametrize("phase", ["train", "evaluate"])
def test_lists_of_different_lengths_cost_no_update_and_reach_an_own_aggregation(phase):
    federation = Federation(lists, lists)
    inner = FedAvg(train_metrics_aggr_fn=total, evaluate_metrics_aggr_fn=total)
    federation.start(inner=inner)
    assert federation.clients(phase) == [3, 3]
    found = getattr(federation.result, f"{phase}_metrics_clientapp")
    assert {number: dict(metrics) for number, metrics in found.items()} == {
        1: {"total": 12.0},
        2: {"total": 12.0},
    }


@pytest.mark.parametrize("phase", ["train", "evaluate"])
def test_what_flowers_mean_cannot_average_is_left_out_by_name(phase, caplog):
    federation = Federation(lists, lists)
    federation.start(rounds=1)
    assert federation.clients(phase) == [3]
    found = getattr(federation.result, f"{phase}_metrics_clientapp")[1]
    assert dict(found) == {"loss": pytest.approx(2.0)}
    assert "left out the metrics 'losses': lists of different lengths" in caplog.text


def test_lists_of_one_length_are_averaged():
    def same(message, context):
        metrics = MetricRecord({"num-examples": 10, "losses": [1.0, float(context.node_id - 1000)]})
        return answer(message, arrays=message.content["arrays"], metrics=metrics)

    result = Federation(same).start(rounds=1)
    assert result.train_metrics_clientapp[1]["losses"] == pytest.approx([1.0, 1.0])


def test_a16_metrics_that_are_not_finite_cost_no_update(caplog):
    def lost(message, context):
        values = {1000: float("nan"), 1001: float("inf"), 1002: 1.0}
        metrics = {"num-examples": 10, "loss": values[context.node_id], "all": [float("nan")]}
        if message.metadata.message_type == "evaluate":
            return answer(message, metrics=MetricRecord(metrics))
        records = {"arrays": message.content["arrays"], "metrics": MetricRecord(metrics)}
        return answer(message, **records)

    federation = Federation(lost, lost)
    federation.start()
    assert federation.clients() == federation.clients("evaluate") == [3, 3]
    for metrics in (
        federation.result.train_metrics_clientapp[2],
        federation.result.evaluate_metrics_clientapp[2],
    ):
        assert not metrics
    assert (
        "left out the metrics 'all', 'loss', which are NaN or infinite at node 1000" in caplog.text
    )


# Names of records, and what a map is told.


def test_a_map_gets_the_records_of_the_strategy():
    told = []

    def sensitivity(message, context):
        told.append(dict(message.content["cfg"]))
        x = torch.randn(20, 6), torch.arange(20) % 3
        return sensitivity_map(load(renamed(message)), [x], rule=message.content["cfg"]["rule"])

    def renamed(message):
        content = RecordDict({"arrays": message.content["model"], "config": ConfigRecord()})
        return Message(content, reply_to=message)

    def train_renamed(message, context):
        metrics = MetricRecord({"num-examples": 10})
        return answer(message, model=message.content["model"], metrics=metrics)

    federation = Federation(train_renamed, sensitivity=sensitivity)
    inner = FedAvg(arrayrecord_key="model", configrecord_key="cfg")
    begin = {"train_config": ConfigRecord({"image-size": 6, "labels": ["a", "b"]})}
    federation.start(initial_arrays(), inner=inner, begin=begin, policy="sensitivity")
    assert federation.clients() == [3, 3]
    own = {"rule": "vector", "round": 1, "timeout": 600.0}
    assert told == 3 * [{"image-size": 6, "labels": ["a", "b"], **own}]


def test_a_query_of_the_apps_own_is_refused_with_the_way_to_let_it_pass():
    federation = Federation()

    @federation.grid._app.query("shape")
    def shape(message, context):
        return answer(message, metrics=MetricRecord({"features": 6}))

    question = Message(RecordDict({"ask": ConfigRecord({"k": 1})}), 1000, "query.shape")
    (reply,) = federation.grid.send_and_receive([question])
    assert 'SelectiveEncryptionMod(pass_queries={"shape"})' in reply.error.reason


# Tensors.


def test_integers_and_booleans_that_nobody_changes_stay_exact():
    constants = {"position_ids": np.arange(6), "flag": np.array([True, False])}
    federation = Federation()
    federation.start(weights(**constants), rounds=3)
    opened = federation.opened()
    for name, value in constants.items():
        assert opened[name].tolist() == value.tolist()
        assert opened[name].dtype == value.dtype


LARGE = {
    "of hashes": np.array([2**63 - 1, -(2**63), 2**53 + 1, 2**52 + 1, 0]),
    "of times": np.array(1_764_400_000_123_456_789),
    "without a sign": np.array([2**64 - 1, 2**63 + 1, 7], np.uint64),
    "none": np.zeros(0, np.int64),
}


@pytest.mark.parametrize("options", [{}, {"opens": "server"}, {"opens": "server", "groups": 3}])
def test_large_integers_that_nobody_changes_stay_exact(options, monkeypatch):
    """Floats have 53 bits. One client's own entry of a tensor leaves the other entries alone."""
    monkeypatch.setenv("FEDSENS_OPENS", "server")

    def counting(message, context):
        state = {name: a.numpy().copy() for name, a in message.content["arrays"].items()}
        state["mixed"][1] += 3 * (context.node_id == 1000)
        return answer(message, arrays=arrays(**state), metrics=MetricRecord({"num-examples": 10}))

    federation = Federation(counting, clients=6 if "groups" in options else 3)
    state = {**LARGE, "mixed": np.array([2**62 + 1, 4, 2**53 + 1])}
    inner = FedMedian() if "groups" in options else None
    federation.start(weights(**state), rounds=3, inner=inner, **options)
    opened = federation.opened()
    for name, value in LARGE.items():
        assert (opened[name].tolist(), opened[name].dtype) == (value.tolist(), value.dtype)
    first, middle, last = opened["mixed"].tolist()
    assert (first, last) == (2**62 + 1, 2**53 + 1)
    assert 4 <= middle <= 7


@pytest.mark.parametrize("policy", ["magnitude", "random"])
def test_tied_tensors_are_masked_as_one_and_cost_no_client(policy):
    shared = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    federation = Federation()
    federation.start(weights(emb=shared, head=shared), rounds=2, policy=policy, ratio=0.4)
    assert federation.clients() == [3, 3]
    model = federation.strategy.model
    masks = {entry.name: model.mask.of(entry) for entry in model.layout.entries}
    assert (masks["emb"] == masks["head"]).all()
    assert 0 < model.mask.k < model.mask.size


ROTARY = np.exp(1j * np.arange(4)).astype(np.complex64)


@pytest.mark.parametrize("kind", [np.complex64, np.complex128])
def test_complex_tensors_are_averaged_where_nothing_is_encrypted(kind):
    federation = Federation()
    result = federation.start(weights(freqs=ROTARY.astype(kind)), ratio=0)
    assert np.allclose(result.arrays["freqs"].numpy(), ROTARY)
    assert federation.clients() == [3, 3]


def test_types_are_refused_by_name_where_they_cannot_travel():
    with pytest.raises(LayoutError, match=r"got freqs \(complex64\); send torch.view_as_real"):
        Federation().start(weights(freqs=ROTARY))
    with pytest.raises(LayoutError, match=r"freqs: expected a type among .*got 'float128'"):
        Federation().start(weights(freqs=np.ones(3, np.longdouble)), ratio=0)


def test_values_near_the_error_of_the_encryption_are_named(caplog):
    tiny = weights(gamma=np.full(64, 1e-6, np.float32))
    Federation().start(tiny, rounds=1, policy="all", preset="compact")
    assert "is more than a hundredth of the values of gamma; use fedsens.preset" in caplog.text
    assert "zeros" not in caplog.text


@pytest.mark.parametrize("preset", ["compact", "exact"])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_tensors_of_zeros_are_named_where_they_do_not_stay_so(caplog, preset, kind):
    """A gate that begins at zero, one without axes, and one of which not all is zero."""
    zeros = {"gate": np.zeros(64, kind), "scale": np.zeros((), kind), "none": np.zeros(0, kind)}
    state = weights(**zeros, some=np.eye(8, dtype=kind))
    Federation().start(state, rounds=1, policy="all", preset=preset)
    assert "gate, scale are zeros after training and get the error of the enc" in caplog.text
    assert "hundredth" not in caplog.text


# Very unequal clients.


@pytest.mark.parametrize(
    ("examples", "told"),
    [
        (lambda count: count // 3, "announced 6 examples and trained on 20, and 2 more nodes"),
        (lambda count: 32 * count, "announced 640 examples and trained on 20, and 2 more nodes"),
        (lambda count: 50 if count == 30 else count, "announced 50 examples and trained on 30; "),
        (lambda count: 0 if count == 40 else count, "announced 0 examples and trained on 40; "),
        (lambda count: count + count // 16, ""),
    ],
)
def test_numbers_of_examples_that_are_not_those_of_training_are_told_once(examples, told, caplog):
    federation = Federation(examples=lambda context: examples(count_of(context)))
    federation.start(rounds=3)
    assert federation.clients() == [3, 3, 3]
    warnings = [each for report in federation.strategy.reports for each in report.warnings]
    assert len(warnings) == (told != "")
    assert told in "".join(warnings)
    assert caplog.text.count("examples in install() must return") == len(warnings)


def unequal(context):
    return 100_000 if context.node_id == 1000 else 30


def train_unequal(message, context):
    metrics = MetricRecord({"num-examples": unequal(context)})
    return answer(message, arrays=message.content["arrays"], metrics=metrics)


def test_a_client_far_above_the_others_is_named_with_the_setting_that_lets_it_in(caplog):
    federation = Federation(train_unequal, examples=unequal, clients=5)
    federation.start(rounds=1)
    assert federation.clients() == [4]
    assert "node 1000 announces 100000 examples, more than 64 times the median" in caplog.text
    assert "raise fedsens.examples-cap" in caplog.text


def test_the_owner_of_an_unequal_federation_can_let_it_in():
    federation = Federation(train_unequal, examples=unequal, clients=5)
    federation.start(rounds=1, examples_cap=4000)
    assert federation.clients() == [5]


@pytest.mark.parametrize("number", [None, -1, float("nan"), 1.5, "10", 2.0**60], ids=str)
def test_what_is_no_number_of_examples_is_quoted(number):
    with pytest.raises(
        PhaseError, match=r"node 1000: .*examples to return a number.*got .*len\(\)"
    ):
        Federation(examples=lambda context: number).start()


@pytest.mark.parametrize("data", [[271828, 3], "271828", np.full(3, 271828), {271828: 1}], ids=str)
def test_data_in_the_place_of_their_number_stay_on_the_client(data, caplog):
    with pytest.raises(
        PhaseError, match=r"got a (list|str|ndarray|dict); return len\(\)"
    ) as caught:
        Federation(examples=lambda context: data).start()
    assert "271828" not in str(caught.value) + caplog.text


SECRET = 271828


class Chosen(nn.Module):
    """A model that looks something up by its inputs, which are all the secret."""

    def __init__(self, lookup):
        super().__init__()
        self.lookup, self.a = lookup, nn.Linear(1, 3)

    def forward(self, x):
        self.lookup(x)
        return self.a(x)


def quoting_loss(z, y):
    raise ValueError(f"no label like {y.sum()} of {SECRET}")


def chosen(lookup, label=0, **options):
    x = torch.full((2, 1), float(SECRET))
    return sensitivity_map(Chosen(lookup), [(x, torch.full((2,), label))], **options)


def unfit(error):
    def look(x):
        raise error

    return look


QUOTES = {
    "a label beyond the classes": lambda: chosen(id, SECRET),
    "a label of another ignored index": lambda: chosen(id, -SECRET, loss=nn.CrossEntropyLoss()),
    "a label of a loss of one's own": lambda: chosen(id, SECRET, loss=lambda z, y: (z * y).sum(-1)),
    "a key that is missing": lambda: chosen(unfit(KeyError(SECRET))),
    "an index": lambda: chosen(lambda x: torch.zeros(3)[x.long()]),
    "a loss": lambda: chosen(id, loss=quoting_loss),
    "a data set": lambda: load_dataset(f"/home/jane-{SECRET}/scans", "folder"),
    "a file": lambda: FederationKey.load(f"/home/jane-{SECRET}/key"),
}


@pytest.mark.parametrize("compute", QUOTES.values(), ids=QUOTES)
def test_what_an_error_of_a_map_quotes_stays_on_the_client(compute, caplog):
    """Neither the server's error nor its log has it; the client's own log has."""
    with pytest.raises(PhaseError) as caught:
        Federation(sensitivity=lambda message, context: compute()).start(policy="sensitivity")
    assert "the client's own log has the details" in str(caught.value)
    told = {each.name: each.getMessage() + str(each.exc_info) for each in caplog.records}
    assert str(SECRET) in told["fedsens.flower._mod"]
    server = "".join(text for name, text in told.items() if name != "fedsens.flower._mod")
    assert str(SECRET) not in str(caught.value) + server


def test_an_error_names_a_maps_file_without_its_folder(caplog):
    with pytest.raises(PhaseError, match="fedsens sensitivity map in mine, got FileNotFound"):
        Federation(sensitivity=lambda *_: load_map("/home/jane/mine")).start(policy="sensitivity")
    assert "jane" not in caplog.text


# Strategies and the call of start.


class Saving(FedAvg):
    """Saves each round's model, as Flower's own examples do."""

    def __init__(self):
        super().__init__()
        self.saved = []

    def configure_train(self, server_round, arrays, config, grid):
        self.saved.append(arrays["w"].numpy())
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        aggregated, metrics = super().aggregate_train(server_round, replies)
        self.saved.append(aggregated["w"].numpy())
        return aggregated, metrics


def test_an_own_aggregation_sees_whole_tensors_with_nan_at_what_is_hidden():
    inner, federation = Saving(), Federation()
    federation.start(inner=inner, weighted_mean=True)
    mask = federation.strategy.model.mask
    first, *later = inner.saved
    assert np.isfinite(first).all()
    for seen in later:
        assert seen.shape == (4, 6)
        assert (np.isnan(seen).reshape(-1) == mask.selected).all()
    assert np.isfinite(federation.opened()["w"]).all()


class Nothing(FedAvg):
    def aggregate_train(self, server_round, replies):
        return None, super().aggregate_train(server_round, replies)[1]


@pytest.mark.parametrize("ratio", [0, 0.5])
def test_an_own_aggregation_that_returns_no_model_is_named(ratio):
    with pytest.raises(PhaseError, match="aggregate_train of Nothing returned no model"):
        Federation().start(inner=Nothing(), weighted_mean=True, ratio=ratio)


class OwnStart(FedAvg):
    def start(self, *given, **named):
        raise AssertionError("never called")


def test_a_strategy_with_a_start_of_its_own_is_refused():
    for ratio in (0, 0.5):
        with pytest.raises(StrategyError, match="got OwnStart with its own, which would never"):
            SelectiveEncryption(OwnStart(), FedSensConfig(ratio=ratio))


def test_the_result_says_that_it_is_no_whole_model(caplog):
    result = Federation().start()
    assert np.isnan(result.arrays["w"].numpy()).sum() == 12
    assert "result.arrays has NaN at the 12 of 24 parameters" in caplog.text
    assert "save_protected(strategy.model, path)" in caplog.text


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("policy", ["random", "magnitude"])
def test_a16_a_second_start_in_one_run_is_an_error_by_name(rounds, policy):
    federation = Federation()
    federation.start(rounds=rounds)
    with pytest.raises(PhaseError, match="a Flower run has one start of SelectiveEncryption"):
        federation.start(rounds=rounds, policy=policy)


def test_without_a_deadline_everything_waits():
    federation = Federation()
    begin = {"timeout": None}
    patience = dict.fromkeys(("key_timeout", "map_timeout", "mask_timeout"), float("inf"))
    federation.start(begin=begin, policy="magnitude", **patience)
    assert federation.clients() == [3, 3]


WRONG_STARTS = [
    ({"timeout": "10"}, "timeout in seconds above 0, or None for no deadline, got '10'"),
    ({"timeout": float("nan")}, "timeout in seconds above 0.*got nan"),
    ({"timeout": -1}, "timeout in seconds above 0.*got -1"),
    ({"timeout": 0}, "timeout in seconds above 0.*got 0"),
    ({"timeout": True}, "timeout in seconds above 0.*got True"),
    ({"timeout": [10]}, r"timeout in seconds above 0.*got \[10\]"),
    ({"timeout": "1", "rounds": "3"}, "num_rounds as a whole number.*got '3'; expected timeout in"),
    ({"rounds": 2.5}, "num_rounds as a whole number of at least 0, got 2.5"),
    ({"rounds": -1}, "num_rounds as a whole number of at least 0, got -1"),
    ({"rounds": None}, "num_rounds as a whole number of at least 0, got None"),
]


@pytest.mark.parametrize(("wrong", "text"), WRONG_STARTS, ids=str)
def test_a_start_with_a_wrong_kind_is_an_error_by_name(wrong, text):
    rounds, begin = wrong.get("rounds", 2), {k: v for k, v in wrong.items() if k == "timeout"}
    with pytest.raises(ConfigurationError, match=text):
        Federation().start(rounds=rounds, begin=begin)


@pytest.mark.parametrize("timeout", [np.float32(60), np.int64(60), float("inf"), 60])
def test_every_number_of_seconds_is_a_deadline(timeout):
    federation = Federation()
    federation.start(rounds=np.int64(1), begin={"timeout": timeout})
    assert federation.clients() == [3]


def test_start_hands_on_what_a_newer_flower_takes(monkeypatch):
    base = SelectiveEncryption.__mro__[1]
    old, asked = base.start, []

    def newer(self, *given, should_stop=None, **named):
        asked.append(should_stop)
        return old(self, *given, **named)

    monkeypatch.setattr(base, "start", newer)
    federation = Federation()
    federation.start(begin={"should_stop": "stop"})
    assert asked == ["stop"]
    assert federation.clients() == [3, 3]


def test_what_no_flower_takes_is_flowers_error():
    with pytest.raises(TypeError, match="should_stopp"):
        Federation().start(begin={"should_stopp": 1})


def test_a_resumed_run_refuses_what_only_flowers_start_understands(tmp_path):
    with pytest.raises(StrategyError, match="expected no should_stop for a resumed run"):
        Federation().start(begin={"should_stop": 1}, resume=True, checkpoint_dir=tmp_path)


# What is seen.


def test_the_phases_are_seen_without_a_call(caplog, monkeypatch):
    # As it is where nobody has chosen anything, whatever other tests chose in this process.
    monkeypatch.setattr(logging.getLogger("fedsens"), "parent", logging.getLogger())
    monkeypatch.setattr(logging.getLogger("fedsens"), "propagate", True)
    caplog.set_level(logging.WARNING)
    caplog.set_level(logging.NOTSET, "fedsens")
    caplog.set_level(logging.INFO, "flwr")
    Federation(train).start(initial_arrays(), rounds=1)
    lines = [record.getMessage() for record in caplog.records if record.name == "flwr"]
    ours = [line.split(",")[0] for line in lines if line.startswith(("round 1 ", "mask of", "Sel"))]
    assert ours == [
        "SelectiveEncryption: policy random",
        "round 1 keys: 3 clients",
        "mask of round 1: 57 of 115 parameters encrypted",
        "round 1 train: 3 clients",
        "round 1 evaluate: 3 clients",
    ]


def test_flowers_closing_summary_has_the_apps_own_metrics_only():
    federation = Federation(lambda message, context: lists(message, context, accuracy=0.5))
    result = federation.start(rounds=1)
    assert set(result.train_metrics_clientapp[1]) == {"loss", "accuracy"}
    assert set(result.evaluate_metrics_clientapp[1]) == {"loss"}
    assert key_of(federation.grid, 1000) is not None


def test_an_option_that_does_not_exist_is_named_with_the_nearest():
    with pytest.raises(ConfigurationError, match=r"ratoi: no such option \(nearest: ratio\)"):
        FedSensConfig.from_run_config({"fedsens.ratoi": 0.1, "fedsens.policy": "random"})
    with pytest.raises(ConfigurationError, match=r"seed: .*min-map: no such option"):
        FedSensConfig.from_run_config({"fedsens.min-map": 1, "fedsens.seed": -1})
