"""Other mods run inside SelectiveEncryptionMod, on whole models."""

import logging

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod, arrays_size_mod

from fedsens.errors import ConfigurationError
from fedsens.flower import LocalGrid, SelectiveEncryptionMod, install, log_through_flower
from fedsens.flower._records import CIPHERTEXT, HEADER

from .federation import (
    Recorder,
    Run,
    arrays_of,
    data_of,
    evaluate,
    initial_arrays,
    largest_difference,
    make_app,
    rounding,
    sensitivity,
    train,
)


def app_with(*mods, train=train):
    app = ClientApp(mods=list(mods))
    app.train()(train)
    app.evaluate()(evaluate)
    install(app, sensitivity, examples=lambda context: len(data_of(context)[1]))
    return app


def seen_by(records):
    def look(message, context, call_next):
        if message.metadata.message_type == "train":
            records.append(("in", dict(message.content)))
        reply = call_next(message, context)
        if message.metadata.message_type == "train":
            records.append(("out", dict(reply.content)))
        return reply

    return look


def test_an_inner_mod_sees_whole_models_and_none_of_fedsenss_records():
    seen = []
    Run(grid=LocalGrid(app_with(SelectiveEncryptionMod(), seen_by(seen)), 2), rounds=2, ratio=0.5)
    assert len(seen) == 8
    incoming = [content for way, content in seen if way == "in"]
    for content in incoming:
        assert not [key for key in content if key.startswith("fedsens.")]
        assert all(np.isfinite(a).all() for a in arrays_of(content["arrays"]).values())
        assert content["arrays"]["0.weight"].numpy().shape == (8, 6)


def test_an_app_may_answer_with_the_content_that_it_got(recorder):
    def in_place(message, context):
        reply = recorder(message, context)
        message.content.update(reply.content)
        del message.content["config"]
        return Message(message.content, reply_to=message)

    run = Run(app=make_app(in_place), rounds=2, ratio=0.5)
    assert [(r.clients, r.lost) for r in run.reports("train")] == [(3, 0)] * 2
    assert largest_difference(run.models[2], recorder.mean(2)) < 1e-5


def test_an_outer_mod_sees_protected_models_only():
    seen = []
    Run(grid=LocalGrid(app_with(seen_by(seen), SelectiveEncryptionMod()), 2), rounds=2, ratio=0.5)
    for way, content in seen:
        if way == "out":
            assert {CIPHERTEXT, HEADER} <= set(content)
            sizes = sum(array.numpy().size for array in content["arrays"].values())
            assert sizes == 116 - 57


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_local_differential_privacy_composes(noise):
    """Its noise is added to the whole model, before encryption; the mean is of noisy models."""
    recorder = Recorder()
    noisy = {}

    def after(message, context, call_next):
        reply = call_next(message, context)
        if message.metadata.message_type == "train":
            noisy[context.node_id] = arrays_of(reply.content["arrays"])
        return reply

    dp = LocalDpMod(clipping_norm=1e6, sensitivity=noise, epsilon=1.0, delta=0.5)
    app = ClientApp(mods=[SelectiveEncryptionMod(), after])
    app.train(mods=[dp])(recorder)
    app.evaluate()(evaluate)
    install(app, sensitivity, examples=lambda context: len(data_of(context)[1]))
    run = Run(grid=LocalGrid(app, 3), rounds=1, ratio=0.5)
    report = run.reports("train")[0]
    assert (report.clients, report.lost) == (3, 0)
    weights = {1000: 20 / 90, 1001: 30 / 90, 1002: 40 / 90}
    mean = {n: sum(w * noisy[node][n] for node, w in weights.items()) for n in noisy[1000]}
    bound = run.strategy.config.parameters.error_bound(3) + rounding(run.models[1])
    assert largest_difference(run.models[1], mean) <= bound
    moved = largest_difference(run.models[1], recorder.mean(1))
    assert (moved > 10 * bound) == (noise > 0)


def test_flowers_size_mod_composes():
    mods = [SelectiveEncryptionMod(), arrays_size_mod]
    run = Run(grid=LocalGrid(app_with(*mods), 2), rounds=1, ratio=0.5)
    assert run.reports("train")[0].lost == 0


def test_user_code_sees_the_records_that_a_plain_app_sees():
    contents = []

    def look(message, context):
        contents.append({key: type(record) for key, record in message.content.items()})
        return train(message, context)

    run = Run(app=make_app(look), rounds=2, ratio=0.5)
    plain = contents[0]
    assert plain["config"] is ConfigRecord
    assert contents == [plain] * 6
    assert run.strategy.model.round == 2


def test_log_lines_can_be_shown_among_flowers():
    logger = logging.getLogger("fedsens")
    parent, level = logger.parent, logger.level
    try:
        log_through_flower()
        assert logger.parent is logging.getLogger("flwr")
        assert logger.isEnabledFor(logging.INFO)
    finally:
        logger.parent = parent
        logger.setLevel(level)


@pytest.mark.parametrize(
    ("mods", "text"),
    [
        ([], r"in plaintext; write app = ClientApp\(mods=\[SelectiveEncryptionMod\(\)\]\)"),
        ([arrays_size_mod], "in plaintext; write app"),
        ([SelectiveEncryptionMod(), arrays_size_mod, SelectiveEncryptionMod(0.5)], "got 2"),
    ],
)
def test_an_app_has_the_mod_once(mods, text):
    """The mod of a function alone is none: the other functions would answer in plaintext."""
    app = ClientApp(mods=mods)
    app.train(mods=[SelectiveEncryptionMod()])(train)
    with pytest.raises(ConfigurationError, match=text):
        install(app, sensitivity, examples=lambda context: 10)


def own_query(answer, **options):
    """What a server gets for a query of the app's own."""
    app = ClientApp(mods=[SelectiveEncryptionMod(**options)])
    app.query("labels")(answer)
    grid = LocalGrid(app, 1)
    question = Message(RecordDict(), 1000, "query.labels")
    (reply,) = grid.send_and_receive([question])
    return reply


def metrics_of(message, context):
    return Message(RecordDict({"m": MetricRecord({"classes": 3})}), reply_to=message)


def arrays_in(message, context):
    return Message(RecordDict({"m": initial_arrays()}), reply_to=message)


def raising(message, context):
    raise ValueError("weights 0.25")


@pytest.mark.parametrize("names", [{"labels"}, "labels", ["query.labels"]])
def test_an_own_query_passes_where_it_is_named_only(names):
    reply = own_query(metrics_of, pass_queries=names)
    assert reply.content["m"]["classes"] == 3
    assert own_query(metrics_of).has_error()


def test_a_query_without_a_name_is_the_default_one():
    for names, passes in (((), False), ({"default"}, True)):
        app = ClientApp(mods=[SelectiveEncryptionMod(pass_queries=names)])
        app.query()(metrics_of)
        (reply,) = LocalGrid(app, 1).send_and_receive([Message(RecordDict(), 1000, "query")])
        assert reply.has_content() == passes
        assert passes or 'pass_queries={"default"}' in reply.error.reason


def test_an_own_query_that_passes_sends_no_arrays_and_no_text_of_an_exception():
    refused = own_query(arrays_in, pass_queries={"labels"})
    assert "ProtocolError: expected an answer without arrays" in refused.error.reason
    failed = own_query(raising, pass_queries={"labels"})
    assert failed.error.reason.startswith("ValueError in the app")
    assert "0.25" not in failed.error.reason
