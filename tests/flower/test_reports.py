"""What the reports say was sent is what was sent."""

import json
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedsens.crypto import CkksParameters
from fedsens.flower import LocalGrid
from fedsens.flower._records import CIPHERTEXT, KEY_ANSWER, KEY_SUM, MAP, MAP_KEY_SUM, size_of
from fedsens.protocol import KEY_BYTES

from .federation import Run, arrays_of, make_app, run_plain

KEY_SUMS = "query.fedsens_key_sum"
PHASES = {
    "query.fedsens_keys": "keys",
    "query.fedsens_sensitivity": "map",
    "query.fedsens_mask": "mask",
    "train": "train",
    "evaluate": "evaluate",
}


def weigh(message):
    """Plaintext and ciphertext bytes of a message, counted without fedsens's help."""
    plain = encrypted = 0
    for key, record in message.content.items():
        if isinstance(record, ArrayRecord):
            size = sum(len(array.data) for array in record.values())
        else:
            values = [v if isinstance(v, list) else [v] for v in record.values()]
            size = sum(
                len(v.encode()) if isinstance(v, str) else len(v) if isinstance(v, bytes) else 8
                for each in values
                for v in each
            )
        if key in {CIPHERTEXT, KEY_SUM, KEY_ANSWER, MAP, MAP_KEY_SUM}:
            encrypted += size
        else:
            plain += size
    return np.array([plain, encrypted])


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    totals = defaultdict(lambda: np.zeros(2, int))
    asked = {}

    def phase_of(message):
        """The keys of a sum are asked for in the phase whose uploads it adds."""
        metadata = message.metadata
        if metadata.message_type != KEY_SUMS:
            return PHASES[metadata.message_type]
        if not metadata.reply_to_message_id:
            kind = json.loads(message.content["fedsens.header"]["json"])["kind"]
            asked[metadata.message_id] = "map" if kind == "map" else "train"
        return asked[metadata.reply_to_message_id or metadata.message_id]

    def tap(message):
        way = "up" if message.metadata.reply_to_message_id else "down"
        totals[phase_of(message), way] += weigh(message)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSENS_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        grid = LocalGrid(make_app(), 3, tap=tap)
        run = Run(grid=grid, rounds=3, ratio=0.5, refresh_every=1)
    assert set(asked.values()) == {"map", "train"}
    return SimpleNamespace(run=run, totals=totals)


@pytest.mark.parametrize("phase", PHASES.values())
def test_the_bytes_of_every_phase_are_those_of_the_messages(measured, phase):
    reports = measured.run.reports(phase)
    assert len(reports) == (1 if phase == "keys" else 3)
    for way in ("up", "down"):
        plain = sum(getattr(report, f"bytes_{way}_plain") for report in reports)
        encrypted = sum(getattr(report, f"bytes_{way}_encrypted") for report in reports)
        assert [plain, encrypted] == measured.totals[phase, way].tolist()


def test_the_metrics_of_a_round_are_the_inner_strategys_own(measured):
    for report in measured.run.reports("train"):
        metrics = measured.run.result.train_metrics_clientapp[report.round]
        assert dict(metrics) == report.metrics == {"loss": pytest.approx(1.0)}
        assert report.clients == 3


def test_the_metrics_of_the_inner_strategy_are_in_the_report(measured):
    plain = run_plain(rounds=1).evaluate_metrics_clientapp[1]["accuracy"]
    assert measured.run.reports("evaluate")[0].metrics == {
        "accuracy": pytest.approx(plain, abs=1e-3)
    }


def test_times_are_measured(measured):
    for report in measured.run.reports("train"):
        assert 0 < report.encrypt_seconds < 5
        assert 0 <= report.add_seconds < 5
        assert 0 < report.seconds < 60
        assert report.round == 1 or report.decrypt_seconds > 0
    assert "up " in str(measured.run.reports("train")[0])


@pytest.mark.parametrize("preset", ["tiny", "precise"])
@pytest.mark.parametrize("parameters", [4096, 50_000])
def test_an_encrypted_parameter_costs_what_its_preset_says(parameters, preset):
    initial = {"w": np.random.default_rng(0).normal(size=parameters).astype(np.float32)}

    def answer(message, context):
        records = {"metrics": MetricRecord({"num-examples": 5})}
        if message.metadata.message_type == "train":
            arrays = arrays_of(message.content["arrays"])
            moved = arrays["w"] + np.float32(0.01)
            records["arrays"] = ArrayRecord({"w": Array(moved)})
        return Message(RecordDict(records), reply_to=message)

    app = make_app(answer, evaluate=answer)
    run = Run(
        grid=LocalGrid(app, 2),
        initial=ArrayRecord({"w": Array(initial["w"])}),
        rounds=2,
        policy="all",
        preset=preset,
    )
    padded = -(-parameters // 4096) * 4096
    each = CkksParameters.preset(preset).wire_bytes * padded + 44 + KEY_BYTES  # 44 of a header
    first, second = run.reports("train")
    assert first.bytes_up_encrypted == second.bytes_up_encrypted == 2 * each
    assert (first.bytes_down_encrypted, second.bytes_down_encrypted) == (0, 2 * each)
    assert second.bytes_up_plain < 2 * 1000


def test_a_config_record_of_lists_is_weighed_whole():
    config = {"a": [1.0, 2.0], "b": b"123", "c": "ä", "d": ["xy", "z"], "e": True}
    content = RecordDict({"config": ConfigRecord(config), "m": MetricRecord({"n": [1, 2, 3]})})
    message = SimpleNamespace(content=content)
    assert size_of(content) == tuple(weigh(message))
