"""fedsens.metrics = summed: the server learns the mean of the metrics, and no client's own."""

import math

import pytest
from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedsens.crypto._wire import CHECKSUM, checksum
from fedsens.errors import ConfigurationError, PhaseError
from fedsens.flower import LocalGrid
from fedsens.flower._records import CIPHERTEXT, HEADER, KEY_SUM_ACTION, bytes_to_record

from .federation import Run, config_of, data_of, is_reply, make_app
from .federation import train as one_step

SUMMED = {"metrics": "summed", "ratio": 0.5}


def reporting(metrics_of, key="metrics"):
    """An app whose evaluation returns what a function of the partition says."""

    def evaluate(message, context):
        partition = int(context.node_config["partition-id"])
        told = {"num-examples": len(data_of(context)[1]), **metrics_of(partition)}
        return Message(RecordDict({key: MetricRecord(told)}), reply_to=message)

    return make_app(evaluate=evaluate)


def metrics_of(partition):
    """So small that the codec's bound holds the quotient of two sums of three within 1e-8."""
    return {
        "loss": 0.1 + partition,
        "correct": 3 * partition,
        "per-class": [0.5, partition / 7, -20.0 * partition],
        "one": [1.0],
    }


def mean(values, weights=(20, 30, 40)):
    return math.fsum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


@pytest.mark.parametrize("opens", ["clients", "server"])
@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_the_strategy_gets_the_mean_of_all_and_no_answer_has_metrics(opens, ratio, monkeypatch):
    monkeypatch.setenv("FEDSENS_OPENS", opens)
    answers, trained = [], []

    def keep(message):
        if is_reply(message, "evaluate"):
            answers.append(dict(message.content))
        elif is_reply(message):
            trained.append(message.content["metrics"])

    grid = LocalGrid(reporting(metrics_of), 3, tap=keep)
    run = Run(grid=grid, opens=opens, ratio=ratio, metrics="summed")
    for number in (1, 2):
        told = run.result.evaluate_metrics_clientapp[number]
        for name, value in metrics_of(0).items():
            each = [metrics_of(partition)[name] for partition in range(3)]
            if isinstance(value, list):
                expected = [mean(column) for column in zip(*each, strict=True)]
            else:
                expected = mean(each)
            assert told[name] == pytest.approx(expected, abs=1e-8)
    assert len(answers) == 6
    assert all(set(content) == {HEADER, CIPHERTEXT} for content in answers)
    assert trained
    assert not run.result.train_metrics_clientapp[1]
    assert len(run.reports("evaluate")) == 2
    assert {each.clients for each in run.reports("evaluate")} == {3}


def test_a_function_of_the_strategys_own_gets_means_and_the_number_of_all_examples():
    seen = []

    def aggregate(contents, weighted_by):
        seen.append([dict(content["scores"]) for content in contents])
        return MetricRecord({"largest": max(c["scores"]["loss"] for c in contents)})

    inner = FedAvg(evaluate_metrics_aggr_fn=aggregate)
    app = reporting(metrics_of, "scores")
    run = Run(inner=inner, grid=LocalGrid(app, 3), rounds=1, **SUMMED)
    expected = mean([0.1, 1.1, 2.1])
    assert run.result.evaluate_metrics_clientapp[1]["largest"] == pytest.approx(expected)
    assert [each["num-examples"] for each in seen[0]] == pytest.approx([30, 30, 30])


BAD = {
    "NaN": (lambda p: {"loss": math.nan}, "finite metrics"),
    "in a list": (lambda p: {"loss": [0.0, math.inf]}, "finite metrics"),
    "too large": (lambda p: {"loss": 1e5}, "'loss'"),
    "an empty list": (lambda p: {"loss": []}, "no empty lists"),
    "other names": (lambda p: {"accuracy": 0.5}, "that most answers have"),
    "another length": (lambda p: {"loss": [0.5]}, "that most answers have"),
}


@pytest.mark.parametrize(("bad", "text"), BAD.values(), ids=BAD)
def test_a16_metrics_that_cannot_be_summed_are_left_out_by_name(bad, text, caplog):
    app = reporting(lambda p: bad(p) if p == 2 else {"loss": 0.5 + p})
    run = Run(grid=LocalGrid(app, 3), rounds=1, **SUMMED)
    told = run.result.evaluate_metrics_clientapp[1]
    assert told["loss"] == pytest.approx(mean([0.5, 1.5], (20, 30)))
    assert text in caplog.text
    assert "1002" in caplog.text


def test_an_answer_with_another_record_does_not_leave(caplog):
    def evaluate(message, context):
        records = {"a": MetricRecord({"num-examples": 2}), "b": MetricRecord({"x": 1.0})}
        return Message(RecordDict(records), reply_to=message)

    run = Run(grid=LocalGrid(make_app(evaluate=evaluate), 3), rounds=1, **SUMMED)
    assert not run.result.evaluate_metrics_clientapp
    assert "one MetricRecord and nothing else" in caplog.text
    assert "0 answers can be added" in caplog.text


def test_without_a_key_a_round_has_no_metrics_and_the_next_one_has(caplog):
    class Silent(LocalGrid):
        evaluated = 0

        def answer(self, message):
            kind, node = message.metadata.message_type, message.metadata.dst_node_id
            reply = super().answer(message)
            self.evaluated += kind == "evaluate"
            if kind == f"query.{KEY_SUM_ACTION}" and node == 1001 and self.evaluated:
                reply.content.clear()
            return reply

    inner = FedAvg(fraction_train=1.0)
    run = Run(inner=inner, grid=Silent(make_app(), 4), rounds=2, **SUMMED)
    assert list(run.result.evaluate_metrics_clientapp) == [2]
    assert "round 1 has no metrics" in caplog.text
    assert "node 1001 (client" in caplog.text
    assert "): 1 sums were lost because of it, 0 had its key" in caplog.text


def test_a18_who_spoils_the_metrics_is_suspected_like_who_spoils_updates(caplog):
    def spoil(message):
        if is_reply(message, "evaluate") and message.metadata.src_node_id == 1002:
            record = message.content[CIPHERTEXT]
            data = b"".join(array.data for array in record.values())[:-CHECKSUM]
            data = data[:-4096] + bytes(byte ^ 0x1F for byte in data[-4096:])  # the highest bits
            message.content[CIPHERTEXT] = bytes_to_record(data + checksum(data))

    run = Run(grid=LocalGrid(make_app(), 4, tap=spoil), rounds=5, **SUMMED)
    state = run.strategy._run
    assert "round 1 has no metrics: expected a sum that honest clients" in caplog.text
    assert "left out of this round" in caplog.text
    assert state._blame.refused
    assert all(state.keys.parties[1002].name in each for each in state._blame.refused)
    assert run.result.evaluate_metrics_clientapp
    assert run.strategy.model.round == 5


def test_an_owner_can_demand_sums(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDSENS_METRICS", "summed")
    assert Run(rounds=1, **SUMMED).result.evaluate_metrics_clientapp
    monkeypatch.setenv("FEDSENS_STATE_DIR", str(tmp_path))  # of another run
    with pytest.raises(PhaseError, match=r"set the server's fedsens\.metrics to summed"):
        Run(rounds=1, ratio=0.5)
    assert list(tmp_path.glob("run-*/node-*/map-*.begun"))
    assert not list(tmp_path.glob("run-*/node-*/update-*.begun"))  # a mended server may ask again


@pytest.mark.parametrize("loss", [0.25, 1e-9, 7.5, [1.0]])
def test_a_loss_does_not_leave_as_a_number_of_examples(loss):
    """The server names the metric that counts examples, and could name any."""
    answers = []

    def keep(message):
        if is_reply(message) and message.has_content():
            answers.append(message.content)

    def train(message, context):
        reply = one_step(message, context)
        reply.content["metrics"]["loss"] = loss
        return reply

    grid = LocalGrid(make_app(train), 3, tap=keep)
    with pytest.raises(PhaseError, match="expected a whole number of examples in 'loss'"):
        Run(grid=grid, inner=FedAvg(weighted_by_key="loss"), rounds=1, **SUMMED)
    assert not answers


def test_an_unencrypted_run_has_no_keys_to_sum_metrics_with():
    with pytest.raises(ConfigurationError, match="metrics are summed under the keys"):
        config_of(ratio=0, metrics="summed")


@pytest.mark.parametrize("keeps", [True, False], ids=["with its model", "without a model"])
def test_whoever_trains_tells_its_number_of_examples_only(keeps):
    answers = []

    def keep(message):
        if is_reply(message):
            answers.append(message.content)

    def train(message, context):
        reply = one_step(message, context)
        reply.content["metrics"]["train-loss"] = 0.25
        if not keeps and context.node_config["partition-id"] == 2:
            del reply.content["arrays"]
        return reply

    Run(grid=LocalGrid(make_app(train), 3, tap=keep), rounds=1, **SUMMED)
    assert len(answers) == 3
    assert sum(not content.array_records for content in answers) == (not keeps)
    for content in answers:
        assert [set(each) for each in content.metric_records.values()] == [{"num-examples"}]
