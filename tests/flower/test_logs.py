"""What an operator reads, and what nobody may read."""

from __future__ import annotations

import json
import logging
import re
import sys
import time

import pytest
from flwr.app import Error, Message

from fedsens.errors import ConfigurationError
from fedsens.flower import LocalGrid, log_through_flower
from fedsens.flower._logs import REMEDIES, JsonLines, reason_of
from fedsens.flower._records import MODEL_REFUSED, RAISED, REFUSED
from fedsens.keys import ClientSettings, UploadRecords, open_model
from fedsens.sensitivity import SensitivityMap
from tests.secret_scan import Needles

from .federation import Run, is_reply, is_request, make_app, sensitivity, state_dir, train


@pytest.fixture
def logger():
    """The library's logger, put back as it was."""
    chosen = logging.getLogger("fedsens")
    before = chosen.parent, chosen.level, chosen.propagate, list(chosen.handlers)
    yield chosen
    chosen.parent, chosen.propagate = before[0], before[2]
    chosen.setLevel(before[1])
    chosen.handlers[:] = before[3]


def failing(message, context):
    if context.node_id == 1001 and message.content["config"]["server-round"] == 2:
        raise ValueError("out of memory")
    return train(message, context)


def lines_of(caplog, name):
    return [r.getMessage() for r in caplog.records if r.name == name]


def test_every_phase_and_round_is_one_line_with_counts_bytes_and_seconds(caplog):
    caplog.set_level(logging.INFO, "fedsens")
    Run(rounds=2, ratio=0.5)
    lines = [x for x in lines_of(caplog, "fedsens.flower._strategy") if x.startswith("round ")]
    form = (
        r"round \d (\w+): 3 clients, 0 lost, up [\d,]+ \+ [\d,]+ B, down [\d,]+ \+ [\d,]+ B .*\d s"
    )
    phases = [re.fullmatch(form, line)[1] if "mask:" not in line else "mask" for line in lines]
    assert phases == ["keys", "map", "mask", "train", "evaluate", "train", "evaluate"]
    ours = [x for x in lines_of(caplog, "fedsens.flower._client_uploads") if " train: " in x]
    assert len(ours) == 6
    assert re.fullmatch(r"round 1 train: 57 of 115 parameters encrypted, \d+ B; .* s", ours[0])


def test_a_client_knows_the_deadline_of_its_map_and_logs_its_rows(caplog):
    caplog.set_level(logging.INFO, "fedsens")
    told = []

    def noting(message, context):
        told.append(message.content["config"]["timeout"])
        return sensitivity(message, context)

    Run(app=make_app(sensitivity=noting), rounds=1, ratio=0.5, map_timeout=123.0)
    assert told == [123.0] * 3
    ours = [x for x in lines_of(caplog, "fedsens.flower._maps") if " map: " in x]
    assert len(ours) == 3
    assert all("rows exact" in line for line in ours)


@pytest.mark.parametrize("maps", ["encrypted", "plain"])
def test_the_report_tells_how_many_maps_random_probes_estimated(maps):
    def probing(message, context):
        smap = sensitivity(message, context)
        rows = "exact" if context.node_id == 1000 else 16
        return SensitivityMap(smap.sums, smap.count, {**smap.meta, "rows": rows})

    app, own = make_app(sensitivity=probing), {"fedsens-allow-plain-maps": True}
    run = Run(grid=LocalGrid(app, 3, node_config=own), rounds=1, ratio=0.5, maps=maps)
    told = {report.phase: report.probed_maps for report in run.strategy.reports}
    assert told.pop("map") == 2
    assert not any(told.values())


def test_a_lost_client_is_named_with_a_remedy(caplog):
    Run(app=make_app(failing), rounds=2, ratio=0.5)
    text = "node 1001 is lost for train of round 2: ValueError in the app; the client's own log"
    assert text in caplog.text


def test_a_vanished_node_is_named_with_a_remedy(caplog):
    def vanish(message):
        if is_request(message) and message.content["config"]["server-round"] == 2:
            grid.nodes.pop(1001, None)

    grid = LocalGrid(make_app(), 3, tap=vanish)
    Run(grid=grid, rounds=2, ratio=0)
    text = "node 1001 is lost for train of round 2: Node Unavailable; see that its SuperNode runs"
    assert text in caplog.text


class Impatient(LocalGrid):
    """The training of one node does not finish."""

    def pull_messages(self, message_ids):
        replies = super().pull_messages(message_ids)
        return [r for r in replies if not is_reply(r) or r.metadata.src_node_id != 1002]


def test_a_silent_node_is_named_with_a_remedy(caplog):
    run = Run(grid=Impatient(make_app(), 3), rounds=1, timeout=0.5, ratio=0.5)
    assert "node 1002 did not answer train of round 1 within 0.5 s; see its log" in caplog.text
    assert [(r.clients, r.lost) for r in run.reports("train")] == [(2, 1)]


class Forgetful(LocalGrid):
    """Says, as a SuperLink does, that a message is not there any more."""

    def __init__(self, late, **options):
        super().__init__(make_app(), 3, **options)
        self.late = late

    def pull_messages(self, message_ids):
        replies = super().pull_messages(message_ids)
        for index, reply in enumerate(replies):
            if is_reply(reply) and reply.metadata.src_node_id == 1002:
                time.sleep(self.late)
                replies[index] = Message(Error(3, "Message Unavailable"), reply_to=reply)
                asked = reply.metadata.reply_to_message_id
                replies[index].metadata.__dict__["_reply_to_message_id"] = asked
        return replies


def test_a_message_that_has_expired_was_not_answered(caplog):
    run = Run(grid=Forgetful(0.6), rounds=1, timeout=0.5, ratio=0.5)
    assert "node 1002 did not answer train of round 1 within 0.5 s; see its log" in caplog.text
    assert "is lost" not in caplog.text
    assert [(r.clients, r.lost) for r in run.reports("train")] == [(2, 1)]


def test_a_message_that_is_gone_before_its_time_is_an_error(caplog):
    run = Run(grid=Forgetful(0), rounds=1, ratio=0.5)
    assert "node 1002 is lost for train of round 1: Message Unavailable" in caplog.text
    assert "did not answer" not in caplog.text
    assert [(r.clients, r.lost) for r in run.reports("train")] == [(2, 1)]


def test_messages_expire_at_the_deadline():
    lives = []

    def look(message):
        if is_request(message) or is_request(message, "evaluate"):
            lives.append(message.metadata.ttl)

    run = Run(grid=LocalGrid(make_app(), 2, tap=look), rounds=1, ratio=0.5)
    assert lives == [3600.0] * 4
    assert run.strategy.model.round == 1


@pytest.mark.parametrize("code", [*REMEDIES, RAISED, REFUSED, MODEL_REFUSED])
def test_every_error_of_flower_has_a_remedy_and_a_refusal_its_own(code):
    assert reason_of(Error(code, "why")).startswith("why; ") == (code in REMEDIES)


def test_json_lines_hold_the_figures(logger, capsys):
    log_through_flower("json")
    log_through_flower("json")  # no line twice
    run = Run(rounds=1, ratio=0.5)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line[0] == "{"]
    trained = [line for line in lines if line.get("phase") == "train"]
    assert len(trained) == 1
    report = run.reports("train")[0]
    assert trained[0]["bytes_up_encrypted"] == report.bytes_up_encrypted
    assert trained[0]["message"] == str(report)
    assert trained[0]["level"] == "info"
    assert {"time", "level", "logger", "message"} <= set(lines[0])


def test_json_lines_hold_exceptions():
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = logging.LogRecord("fedsens", 40, "", 1, "failed %d", (3,), sys.exc_info())
    line = JsonLines().format(record)
    assert "\n" not in line
    assert json.loads(line)["message"] == "failed 3"
    assert "ValueError: two" in json.loads(line)["exception"]


def test_the_environment_chooses_the_format(logger, monkeypatch):
    monkeypatch.setenv("FEDSENS_LOG_FORMAT", "json")
    log_through_flower()
    assert isinstance(logger.handlers[-1].formatter, JsonLines)
    assert not logger.propagate
    log_through_flower("text")
    assert logger.propagate
    assert not [h for h in logger.handlers if isinstance(h.formatter, JsonLines)]
    assert ClientSettings.from_node({}, {"FEDSENS_LOG_FORMAT": "json"}) == ClientSettings()
    monkeypatch.setenv("FEDSENS_LOG_FORMAT", "xml")
    with pytest.raises(ConfigurationError, match="text, json, got 'xml'"):
        log_through_flower()


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_nothing_secret_is_logged_at_any_level(logger, caplog, capsys, monkeypatch, log_format):
    one_time, keep = [], UploadRecords.keep

    def kept(self, kind, server_round, pending):
        one_time.append(pending.secret)
        keep(self, kind, server_round, pending)

    monkeypatch.setattr(UploadRecords, "keep", kept)
    log_through_flower(log_format)
    caplog.set_level(logging.DEBUG)
    logger.addHandler(caplog.handler)
    logger.setLevel(logging.DEBUG)
    run = Run(app=make_app(failing), rounds=3, ratio=0.3, refresh_every=2)
    written = capsys.readouterr()
    text = caplog.text + written.err + written.out
    assert "encrypted" in text
    identities = list(state_dir().glob("run-1/node-*/*identity"))
    assert len(identities) == 6
    assert len(one_time) == 3 * 3 + 3 * 2 - 1
    needles = Needles()
    for path in identities:
        needles.add_secret(str(path), path.read_bytes())
    needles.add_secret("key", run.key._secret)
    for number, secret in enumerate(one_time):
        needles.add_secret(f"one-time {number}", secret.astype("<i2").tobytes())
        for shown in (str(secret[:12]), str(secret[:12].tolist()), repr(secret)):
            assert shown.strip("[]") not in text
    model = run.strategy.model
    opened = model.layout.flatten(open_model(model, run.key, 1))
    needles.add_values(opened[model.mask.selected])
    assert needles.search({"log": text.encode()}) == []
    # The search would find them.
    value = float(opened[model.mask.selected][1])
    for told in (repr(secret.astype("<i2").tobytes()), run.key._secret.hex(), f"{value:.8g}"):
        assert needles.search({"log": f"{text} {told} ".encode()})
